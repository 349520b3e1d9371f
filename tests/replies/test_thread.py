"""Who is next in the thread of kept answers: tenants by turns, however many pieces of work one of them has."""

from __future__ import annotations

import asyncio
import threading

import pytest

from gateway.replies import thread

BUSY, NEIGHBOUR = 1, 2


async def test_a_tenant_with_much_to_do_lets_others_in_between() -> None:
    go, done = threading.Event(), list[str]()

    def work(name: str) -> None:
        assert go.wait(20)
        done.append(name)

    crowd = [asyncio.create_task(thread.run(BUSY, work, f"busy-{number}")) for number in range(5)]
    await asyncio.sleep(0)
    neighbour = asyncio.create_task(thread.run(NEIGHBOUR, work, "neighbour"))
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(*crowd, neighbour)
    assert done == ["busy-0", "neighbour", *(f"busy-{number}" for number in range(1, 5))]
    assert thread._queues == {}


async def test_who_gives_up_waiting_leaves_the_queue_in_order() -> None:
    go, done = threading.Event(), list[str]()

    def work(name: str) -> None:
        assert go.wait(20)
        done.append(name)

    first, second, third = (asyncio.create_task(thread.run(BUSY, work, name)) for name in "abc")
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    go.set()
    await asyncio.gather(first, third)
    assert done == ["a", "c"]
    assert thread._queues == {}
