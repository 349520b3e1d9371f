"""The master's decisions on signals, without processes: who is replaced when, and when it ends."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gateway.server import master as masters
from gateway.server import sizes
from gateway.server.master import Master
from gateway.server.sizes import Sizes
from gateway.server.workers import Worker
from tests.server.test_slots import StandIn


class Standing(StandIn):
    """With what the master sees beside."""

    ears: list[int] = []

    def __init__(self, generation: int) -> None:
        super().__init__(float("inf"))
        self.generation = generation
        self.sizes = Sizes(2)
        self.stopped: list[float] = []
        self.process: Any = subprocess.CompletedProcess([], 0)

    def stop(self, seconds: float) -> None:
        self.stopped.append(seconds)


class Company:
    """A master and all that it has started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wanted: Sizes, **options: Any) -> None:
        self.started: list[Any] = []
        self.replacing: list[bool] = []
        self.said: list[str] = []
        self.closed = False
        monkeypatch.setattr(Worker, "start", self.start)
        monkeypatch.setattr(masters, "say", lambda level, event, **more: self.said.append(event))
        listener: Any = self
        self.master = Master(listener, wanted, options)
        self.look()

    def start(self, listener: object, drain_seconds: float | None, generation: int, *, replaces: bool) -> Any:
        self.replacing.append(replaces)
        self.started.append(Standing(generation))
        return self.started[-1]

    def close(self) -> None:
        self.closed = True

    def look(self) -> None:
        self.master._look()

    def ready(self) -> None:
        """All that are starting are ready."""
        for slot in self.master.slots:
            if slot.fresh is not None:
                slot.fresh.spoke = True  # type: ignore[attr-defined]
        self.look()

    @property
    def serving(self) -> list[int]:
        return [slot.serving.generation if slot.serving else 0 for slot in self.master.slots]


@pytest.fixture
def company(monkeypatch: pytest.MonkeyPatch) -> Company:
    """Of two that serve."""
    made = Company(monkeypatch, Sizes(2))
    made.ready()
    return made


def test_a_reload_replaces_one_after_the_other(company: Company) -> None:
    company.master._on_reload()
    company.look()
    assert (len(company.started), company.serving) == (3, [1, 1])
    company.ready()
    assert (len(company.started), company.serving) == (4, [2, 1])
    assert [worker.stopped for worker in company.started] == [[20], [], [], []]
    company.ready()
    assert company.serving == [2, 2]
    assert company.said[-1] == "reloaded"
    assert company.replacing == [False, False, True, True]
    assert not company.closed


def test_a_second_reload_is_remembered_and_comes_after(company: Company) -> None:
    company.master._on_reload()
    company.look()
    company.master._on_reload()
    company.master._on_reload()
    for _ in range(3):
        company.ready()
    assert company.said.count("reloading") == 2
    for _ in range(3):
        company.ready()
    assert company.serving == [3, 3]
    assert company.said.count("reloaded") == 2
    assert not company.master.rolling


def test_a_reload_that_fails_leaves_the_others_and_the_next_one_may_succeed(company: Company) -> None:
    company.master._on_reload()
    company.look()
    company.started[-1].dead = True
    company.look()
    assert company.serving == [1, 1]
    assert company.said[-1] == "reload failed: those that ran go on"
    company.look()
    assert len(company.started) == 3
    company.master._on_reload()
    for _ in range(3):
        company.ready()
    assert company.serving == [3, 3]


def test_a_reload_takes_over_what_the_settings_say_now(company: Company) -> None:
    company.master._on_reload()
    company.look()
    company.started[-1].sizes = Sizes(3, 7, 512)
    company.ready()
    company.started[-1].sizes = Sizes(3, 7, 512)
    company.ready()
    company.look()
    assert company.master.sizes == Sizes(3, 7, 512)
    company.ready()
    assert company.serving == [2, 2, 2]
    company.master._on_reload()
    for _ in range(4):
        company.look()
        for worker in company.started:
            worker.sizes = Sizes(1)
        company.ready()
    assert company.serving == [3]
    assert sum(bool(worker.stopped) for worker in company.started) == len(company.started) - 1


def test_what_the_command_line_says_no_reload_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    company = Company(monkeypatch, Sizes(1), workers=1)
    company.ready()
    company.master._on_reload()
    company.look()
    company.started[-1].sizes = Sizes(8, 9)
    company.ready()
    assert company.master.sizes == Sizes(1, 9)


def test_it_ends_when_all_have_drained(company: Company) -> None:
    company.master._on_stop()
    assert company.closed
    assert [worker.stopped for worker in company.started] == [[20], [20]]
    company.started[0].dead = True
    company.look()
    assert not company.master._over()
    company.started[1].dead = True
    company.look()
    assert company.master._over()
    assert company.master.status == 0


def test_it_ends_with_1_when_one_did_not_end_well(company: Company) -> None:
    company.master._on_stop()
    company.started[0].process = subprocess.CompletedProcess([], -signal.SIGKILL)
    for worker in company.started:
        worker.dead = True
    company.look()
    assert (company.master._over(), company.master.status) == (True, 1)


def test_more_signals_hurry_it(company: Company) -> None:
    company.master._on_stop()
    company.master._on_stop()
    assert [worker.stopped for worker in company.started] == [[20, 0], [20, 0]]
    company.master._on_stop()
    assert [worker.kill_at for worker in company.started] == [0, 0]


@pytest.mark.parametrize("error", [FileNotFoundError("no such folder"), subprocess.SubprocessError("preexec_fn")])
def test_a_process_that_cannot_be_made_ends_the_reload_and_nothing_else(
    company: Company, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The folder of the release before was deleted, or there is no memory: those that run must not end with us."""
    start = Worker.start

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Worker, "start", fail)
    company.master._on_reload()
    company.look()
    company.look()
    assert company.serving == [1, 1]
    assert company.said[-2:] == ["worker could not be started", "reload failed: those that ran go on"]
    company.master.slots[0].serving.dead = True  # type: ignore[union-attr]
    company.look()
    assert company.serving == [0, 1]
    monkeypatch.setattr(Worker, "start", start)
    company.master._on_reload()
    for _ in range(4):
        company.ready()
    assert company.serving == [3, 3]


def test_each_worker_may_drain_for_as_long_as_its_own_settings_say(company: Company) -> None:
    """It read `.env` when it was started, which may have been after a crash: SIGHUP is not the only way."""
    company.started[0].sizes = Sizes(2, 300)
    company.master._on_stop()
    assert [worker.stopped for worker in company.started] == [[300], [20]]


def test_a_stop_ends_a_reload(company: Company) -> None:
    company.master._on_reload()
    company.look()
    company.master._on_stop()
    company.master._on_reload()
    assert all(worker.stopped for worker in company.started)
    assert len(company.started) == 3


def test_it_gives_up_when_none_has_ever_started(monkeypatch: pytest.MonkeyPatch) -> None:
    company = Company(monkeypatch, Sizes(2))
    company.started[0].dead = True
    company.look()
    assert not company.master.stops
    company.started[1].dead = True
    company.look()
    company.look()
    assert (company.master._over(), company.master.status) == (True, 1)


def test_cpus_are_what_the_container_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes.os, "sched_getaffinity", lambda pid: set(range(16)))
    quotas = iter(["max 100000", "250000 100000", "50000 100000"])
    monkeypatch.setattr(Path, "read_text", lambda path: next(quotas))
    assert [Sizes(0).count, Sizes(0).count, Sizes(0).count] == [16, 3, 1]
    assert Sizes(5).count == 5


def test_a_worker_of_newer_code_may_say_more() -> None:
    assert Sizes.loads('{"workers": 3, "colour": "blue"}\n') == Sizes(3)


def test_that_all_were_stopped_for_a_while_is_held_against_nobody(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`docker pause`, or a machine that sleeps: no worker could say anything, and we could not hear it."""
    now = company.master._looked_at
    monkeypatch.setattr(masters.time, "monotonic", lambda: now)
    for worker in company.started:
        worker.stuck, worker.heard_at = True, now
    for seconds in (600, 4, 4):
        now += seconds
        company.look()
    assert "worker hangs" not in company.said
    for _ in range(20):
        now += 4
        company.look()
    assert company.said.count("worker hangs") == 2
