from __future__ import annotations

import threading

from gateway.ledger.mailbox import Mailbox


def test_it_gives_what_was_put_in_order_and_no_more_than_asked() -> None:
    box: Mailbox[int] = Mailbox()
    for number in range(5):
        box.put(number)
    assert (box.take(3, wait_s=1), box.take(3, wait_s=1), len(box)) == ([0, 1, 2], [3, 4], 0)


def test_a_ring_that_nobody_waits_for_is_kept() -> None:
    box: Mailbox[int] = Mailbox()
    box.ring()
    box.ring()
    assert box.take(1, wait_s=60) == []


def test_a_ring_wakes_who_waits() -> None:
    box: Mailbox[str] = Mailbox()
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(box.take(1, wait_s=60)))
    thread.start()
    box.put("letter")
    box.ring()
    thread.join(30)
    assert found == ["letter"]
