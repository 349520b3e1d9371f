"""Who is next in the thread of kept answers: tenants by turns, however many pieces of work one of them has."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from gateway.replies import thread

BUSY, NEIGHBOUR, THIRD = 1, 2, 3


class Work:
    """Pieces of work that wait until they may be done, and tell in which order they were."""

    def __init__(self) -> None:
        self.begun, self.may = threading.Event(), threading.Event()
        self.done: list[str] = []

    def give(self, tenant_id: int, name: str) -> asyncio.Task[None]:
        return asyncio.create_task(thread.run(tenant_id, self._do, name))

    def _do(self, name: str) -> None:
        self.begun.set()
        assert self.may.wait(20)
        self.done.append(name)


@pytest.fixture
def work() -> Work:
    return Work()


async def under_way(work: Work) -> None:
    await asyncio.to_thread(work.begun.wait, 20)


async def test_a_tenant_with_much_to_do_lets_others_in_between(work: Work) -> None:
    tasks = [work.give(BUSY, "busy-0")]
    await under_way(work)
    tasks += [work.give(BUSY, f"busy-{number}") for number in range(1, 6)]
    tasks += [work.give(NEIGHBOUR, "neighbour-0"), work.give(NEIGHBOUR, "neighbour-1"), work.give(THIRD, "third-0")]
    await asyncio.sleep(0)
    work.may.set()
    await asyncio.gather(*tasks)
    assert work.done[:5] == ["busy-0", "busy-1", "neighbour-0", "third-0", "busy-2"]
    assert work.done[5:] == ["neighbour-1", "busy-3", "busy-4", "busy-5"]
    assert not thread._waiting


async def test_what_nobody_waits_for_any_more_is_not_done(work: Work) -> None:
    first = work.give(BUSY, "first")
    await under_way(work)
    second, third = work.give(BUSY, "second"), work.give(BUSY, "third")
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    work.may.set()
    await asyncio.gather(first, third)
    assert work.done == ["first", "third"]
    assert not thread._waiting


async def test_a_failure_is_told_and_let_go_of() -> None:
    class Thing:
        pass

    def fail(thing: Thing) -> None:
        raise ValueError("no")

    thing = Thing()
    kept = weakref.ref(thing)
    gc.disable()
    try:
        with pytest.raises(ValueError, match="no"):
            await thread.run(BUSY, fail, thing)
        await thread.run(BUSY, int)  # the thread is through with it
        del thing
        assert kept() is None
    finally:
        gc.enable()
