"""A worker's place, by the clock: pauses between starts, replacements, sizes. The workers are stand-ins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.server import slots
from gateway.server.slots import Backoff, Slot


class StandIn:
    """As much of a Worker as a slot sees."""

    count = 0

    def __init__(self, now: float) -> None:
        StandIn.count += 1
        self.pid, self.generation = StandIn.count, 1
        self.ready_at, self.kill_at = now, now + 60
        self.ready = self.dead = self.killed = self.spoke = self.stuck = False
        self.heard_at = now
        self.memory = 100

    def hear(self) -> bool:
        spoke, self.spoke = self.spoke, False
        self.ready = self.ready or spoke
        return spoke

    def ended(self) -> bool:
        return self.dead

    def kill_if_due(self, now: float) -> bool:
        self.killed = self.dead = self.dead or (not self.ready and now >= self.kill_at)
        return self.killed

    def hangs(self, now: float) -> bool:
        return self.stuck and now - self.heard_at > 60

    def give_up(self, now: float) -> None:
        self.dead = True

    def memory_mb(self) -> int:
        return self.memory

    def how_it_ended(self) -> dict[str, object]:
        return {"status": 1}

    def bury(self) -> None: ...


class Ground:
    def __init__(self) -> None:
        self.now = 1000.0
        self.left: list[StandIn] = []
        self.said: list[tuple[str, dict[str, Any]]] = []
        start: Any = lambda replaces: StandIn(self.now)  # noqa: E731
        leave: Any = self.left.append
        self.slot = Slot(0, start, leave, lambda level, event, **more: self.said.append((event, more)))

    def monotonic(self) -> float:
        return self.now

    def after(self, seconds: float) -> Any:
        self.now += seconds
        self.slot.look()
        return self.slot

    def ready(self) -> Any:
        fresh: Any = self.slot.fresh
        fresh.spoke = True
        fresh.ready_at = self.now
        self.slot.look()
        return fresh

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.said]


@pytest.fixture
def ground(monkeypatch: pytest.MonkeyPatch) -> Ground:
    made = Ground()
    monkeypatch.setattr(slots, "time", SimpleNamespace(monotonic=made.monotonic))
    made.slot.look()
    return made


def test_it_starts_a_worker_which_serves_when_it_says_so(ground: Ground) -> None:
    assert ground.slot.fresh is not None
    assert ground.slot.serving is None
    fresh = ground.ready()
    assert ground.slot.serving is fresh
    assert ground.slot.fresh is None
    assert ground.events == ["worker started", "worker ready"]


def test_pauses_grow_and_a_steady_run_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "time", SimpleNamespace(monotonic=lambda: 0.0))
    backoff = Backoff()
    assert [backoff.next(2) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert [backoff.next(61), backoff.next(2), backoff.next(2)] == [0, 1, 2]


def test_one_that_dies_again_and_again_is_waited_for(ground: Ground) -> None:
    for pause in (1, 2, 4):
        ground.slot.fresh.dead = True  # type: ignore[union-attr, method-assign, assignment]
        ground.after(0)
        assert ground.said[-1] == ("worker could not start", {**ground.said[-1][1], "again_in_seconds": pause})
        assert ground.after(pause - 0.1).fresh is None
        assert ground.after(0.2).fresh is not None


def test_one_that_ran_long_starts_again_at_once(ground: Ground) -> None:
    worker = ground.ready()
    ground.after(100)
    worker.dead = True
    assert ground.after(0).fresh is not None
    assert ground.slot.serving is None


def test_one_that_never_gets_ready_is_killed(ground: Ground) -> None:
    first: Any = ground.slot.fresh
    assert ground.after(59).fresh is first
    ground.after(2)
    assert first.killed
    assert ground.events[-2:] == ["worker is not ready in time", "worker could not start"]
    assert ground.after(2).fresh is not first


def test_the_old_one_goes_when_the_new_one_is_ready(ground: Ground) -> None:
    old = ground.ready()
    ground.slot.replace()
    assert ground.after(5).serving is old
    assert ground.left == []
    fresh = ground.ready()
    assert ground.slot.serving is fresh
    assert ground.left == [old]


def test_the_old_one_stays_when_the_new_one_cannot_start(ground: Ground) -> None:
    old = ground.ready()
    ground.slot.replace()
    ground.slot.fresh.dead = True  # type: ignore[union-attr, method-assign, assignment]
    assert ground.after(1).serving is old
    assert ground.slot.failed == 1
    assert ground.after(100).fresh is None  # nobody asks again
    assert ground.left == []


def test_one_that_is_too_large_is_replaced(ground: Ground) -> None:
    old = ground.ready()
    ground.slot.recycle_above(100)
    assert ground.slot.fresh is None
    old.memory = 101
    ground.slot.recycle_above(100)
    assert ground.said[-2] == ("worker is too large", {"pid": old.pid, "memory_mb": 101, "limit_mb": 100})
    fresh = ground.ready()
    fresh.memory = 101
    ground.slot.recycle_above(100)  # a limit that is too small for any: not without a pause
    assert ground.slot.fresh is None
    ground.after(1.1)
    ground.slot.recycle_above(100)
    assert ground.slot.fresh is not None


def test_one_that_is_too_large_waits_for_a_better_moment_if_none_can_follow_it(ground: Ground) -> None:
    """The database is away, say. The large one serves on, and no process is started every three seconds."""
    old = ground.ready()
    ground.after(1000)
    old.memory = 101
    ground.slot.recycle_above(100)
    fresh: Any = ground.slot.fresh
    fresh.dead = True
    for _ in range(9):
        ground.after(3)
        ground.slot.recycle_above(100)
        assert (ground.slot.serving, ground.slot.fresh) == (old, None)
    ground.after(6)
    ground.slot.recycle_above(100)
    assert ground.slot.fresh is not None


def test_one_that_hangs_is_killed_and_replaced(ground: Ground) -> None:
    worker = ground.ready()
    worker.stuck = True
    assert ground.after(60).serving is worker
    assert ground.after(1).serving is None
    assert ground.events[-3:] == ["worker hangs", "worker died", "worker started"]
    assert ground.said[-3][1]["seconds"] == 61
    assert ground.ready() is not worker
