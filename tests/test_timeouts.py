"""Timers of which nearly none rings, on a loop whose time is ours."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from gateway import timeouts

request: ContextVar[str] = ContextVar("request", default="")


class Loop(asyncio.SelectorEventLoop):
    """Its time passes in `wait` only."""

    now = 1000.0
    timers = 0

    def time(self) -> float:
        return self.now

    def call_at(self, *given: Any, **named: Any) -> asyncio.TimerHandle:  # type: ignore[override]
        self.timers += 1
        return super().call_at(*given, **named)

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while self._scheduled and self._scheduled[0].when() <= until:  # type: ignore[attr-defined]
            timer = heapq.heappop(self._scheduled)  # type: ignore[attr-defined]
            self.now = max(self.now, timer.when())
            timer._run()
            self.turn()
        self.now = until

    def turn(self) -> None:
        self.call_soon(self.stop)
        self.run_forever()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()
    timeouts._rows.clear()


def test_each_rings_when_it_is_due_and_once(loop: Loop) -> None:
    rung: list[tuple[str, float]] = []

    def ring(name: str) -> None:
        rung.append((name, loop.now))

    timeouts.call_later(loop, 10, ring, "first")
    loop.wait(4)
    timeouts.call_later(loop, 10, ring, "second")
    timeouts.call_later(loop, 3, ring, "short")
    loop.wait(60)
    assert rung == [("short", 1007.0), ("first", 1010.0), ("second", 1014.0)]
    timeouts.call_later(loop, 10, ring, "later")  # after a time in which there was nothing to wait for
    loop.wait(60)
    assert rung[3:] == [("later", 1074.0)]


def test_who_is_cancelled_does_not_ring_and_keeps_no_other_from_it(loop: Loop) -> None:
    rung: list[str] = []
    first, second, third = (timeouts.call_later(loop, 10, rung.append, name) for name in ("first", "second", "third"))
    first.cancel()
    third.cancel()
    third.cancel()
    loop.wait(60)
    assert rung == ["second"]
    second.cancel()  # too late, and no error


def test_who_is_cancelled_by_another_that_is_due_at_the_same_time_does_not_ring(loop: Loop) -> None:
    rung: list[str] = []
    timeouts.call_later(loop, 10, lambda: second.cancel())
    second = timeouts.call_later(loop, 10, rung.append, "second")
    loop.wait(60)
    assert rung == []


def test_each_rings_for_who_set_it(loop: Loop) -> None:
    rung: list[str] = []
    for name in ("ann", "bob"):
        token = request.set(name)
        timeouts.call_later(loop, 10, lambda: rung.append(request.get()))
        request.reset(token)
    loop.wait(60)
    assert rung == ["ann", "bob"]


def test_one_that_fails_is_told_of_and_keeps_no_other_from_ringing(loop: Loop) -> None:
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    rung: list[str] = []
    timeouts.call_later(loop, 10, lambda: 1 / 0)
    timeouts.call_later(loop, 10, rung.append, "second")
    loop.wait(60)
    assert rung == ["second"] and isinstance(told[0]["exception"], ZeroDivisionError)


def test_a_thousand_requests_take_a_few_timers_of_the_loop(loop: Loop) -> None:
    for _ in range(1000):
        timeout = timeouts.call_later(loop, 10, pytest.fail, "it was cancelled")
        loop.wait(0.05)
        timeout.cancel()
    loop.wait(60)
    assert loop.timers < 10
    assert not timeouts._rows


def test_a_loop_does_not_wait_for_another(loop: Loop) -> None:
    rung: list[str] = []
    ended = Loop()
    timeouts.call_later(ended, 10, rung.append, "never")
    ended.close()
    timeouts.call_later(loop, 10, rung.append, "mine")
    loop.wait(60)
    assert rung == ["mine"]
