"""Processes that end while they answer: what was under way is finished, or can be asked for again."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
import requests

from tests.replies.conftest import Shop
from tests.servers import RunningServer, running_server
from tests.upstream_scripts import Answer, Exchange, Stream, hang, words

# It gives up waiting long before a second look could tell that the other process is dead.
IMPATIENT = {"SSE_KEEP_ALIVE_SECONDS": "6", "WHOLE_KEEP_ALIVE_SECONDS": "6"}
# As if it had sent its last heartbeat that long ago.
JUST_NOW = "UPDATE ledger_process SET heartbeat_at = now() WHERE id = %s RETURNING id"
LATE = "UPDATE ledger_process SET heartbeat_at = now() - interval '20 s' WHERE id = %s RETURNING id"
SUSPECTED = "UPDATE replies_keptreply SET suspected_at = now() - interval '7 s' WHERE id = %s RETURNING id"
ENDED = "UPDATE ledger_process SET ended_at = now() WHERE id = %s RETURNING id"


def killed(shop: Shop, *, stream: bool) -> str:
    """A process that dies while the provider answers; the id of its process row."""
    served = shop.serve(Stream(words(5), hang_after=3) if stream else hang)
    with running_server(shop.house.environment) as server:
        asking = threading.Thread(target=_ask, args=(shop, server, stream))
        asking.start()
        row = shop.under_way(served)
        server.stop(signal.SIGKILL)
        asking.join()
    return str(row["process_id"])


def _ask(shop: Shop, server: RunningServer, stream: bool) -> None:
    with pytest.raises(requests.exceptions.RequestException):
        _ = shop.ask(server=server, stream=stream).content


@pytest.mark.parametrize("stream", [False, True])
def test_a_killed_process_gives_its_requests_up(shop: Shop, stream: bool) -> None:
    """By its heartbeat, seen missing twice; whoever looks only once must wait."""
    process_id = killed(shop, stream=stream)
    with running_server({**shop.house.environment, **IMPATIENT}) as other:
        shop.house.query(JUST_NOW, [process_id])
        again = shop.ask(server=other, stream=stream)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "idempotency_key_in_use")
        assert shop.kept("running")["suspected_at"] is None
        shop.house.query(LATE, [process_id])
        assert shop.ask(server=other, stream=stream).status_code == 409
    row = shop.kept("running")
    assert row["suspected_at"] is not None
    shop.house.query(SUSPECTED, [row["id"]])
    anew = shop.ask(stream=stream)
    assert (anew.status_code, "idempotent-replayed" in anew.headers) == (200, False)
    assert shop.ask(stream=stream).content == anew.content
    assert [row["status"] for row in shop.records()] == ["completed"]  # the hold of the first is the sweeper's


def test_a_process_that_is_known_to_have_ended_gives_them_up_at_once(shop: Shop) -> None:
    shop.house.query(ENDED, [killed(shop, stream=False)])
    assert shop.ask(stream=False).status_code == 200
    shop.records()


def test_a_crowd_in_a_killed_process_is_answered_and_charged_once(shop: Shop) -> None:
    """Killed at any moment: while some wait for their first byte, some are half through and some were kept."""
    keys, come, dead = [uuid.uuid4().hex for _ in range(24)], count(), threading.Event()

    async def answer(exchange: Exchange) -> None:
        if next(come) >= 20 and not dead.is_set():
            await exchange.hang()  # so some are never through
        await Stream(words(10), interval=0.03)(exchange)

    shop.upstream.script("chat-v1", answer)
    with running_server(shop.house.environment) as server:

        def first(number: int) -> bool:
            time.sleep(number * 0.05)
            try:
                return shop.ask(server=server, key=keys[number], stream=True).content.endswith(b"[DONE]\n\n")
            except requests.exceptions.RequestException:
                return False

        with ThreadPoolExecutor(len(keys)) as pool:
            asking = [pool.submit(first, number) for number in range(len(keys))]
            shop._until(lambda: len(shop.records_so_far()) >= 4, "fewer than 4 records")
            process_id = shop.records_so_far()[0]["process_id"]
            server.stop(signal.SIGKILL)
            dead.set()
            done = [future.result() for future in asking]
    assert sum(done) < len(keys)
    shop.house.query(ENDED, [process_id])
    again = shop.at_once(len(keys), lambda number: shop.ask(key=keys[number], stream=True))
    for whole, answer in zip(done, again, strict=True):
        if answer.status_code == 409:  # killed between its record and its keeping: charged, so not run again
            assert answer.json()["error"]["code"] == "idempotency_answer_lost"
        else:
            assert answer.content.count(b'"content": "w') == 10
        assert "idempotent-replayed" in answer.headers or not whole  # who had all of it finds it again
    assert {row["status"] for row in shop.records(len(keys))} == {"completed"}


def test_it_finishes_what_its_client_left_before_it_stops(shop: Shop) -> None:
    served = shop.serve(Stream(words(50), interval=0.02))
    with running_server(shop.house.environment) as server:
        with shop.ask(server=server, stream=True) as broken:
            next(broken.iter_lines(chunk_size=1))
        assert server.stop() == 0
    assert served()[0].ended.wait(60)
    assert served()[0].outcome == "whole"
    again = shop.ask(stream=True)
    assert again.headers["idempotent-replayed"] == "true"
    assert b'"w49 "' in again.content
    assert [row["status"] for row in shop.records()] == ["completed"]


def test_what_does_not_finish_in_time_is_cancelled_and_may_run_again(shop: Shop) -> None:
    served = shop.serve(hang)
    with running_server({**shop.house.environment, "DRAIN_SECONDS": "0"}) as server:
        shop.ask_and_leave(served, server)
        shop.kept("running")
        assert server.stop() == 0
    shop.until_gone()
    shop.serve(Answer("At last."))
    assert "At last." in shop.ask().text
    assert [row["status"] for row in shop.records(2)] == ["interrupted", "completed"]


def test_a_second_process_that_is_asked_while_the_first_drains_waits_for_it(shop: Shop) -> None:
    shop.serve(Stream(words(50), interval=0.02))
    with running_server(shop.house.environment) as server:
        with shop.ask(server=server, stream=True) as broken:
            next(broken.iter_lines(chunk_size=1))
        server.process.send_signal(signal.SIGTERM)
        again = shop.ask_until_answered(stream=True)
    assert again.headers["idempotent-replayed"] == "true"
    shop.records()
