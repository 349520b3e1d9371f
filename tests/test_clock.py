"""A process goes by the database's clock where its own is wrong, and by its own where the difference is none."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gateway import clock
from gateway.identifiers import uuid7

START = 1_800_000_000 * clock.SECOND_NS


class System:
    """This machine's clock."""

    def __init__(self) -> None:
        self.ns = START

    def __call__(self) -> int:
        return self.ns


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    mine = System()
    monkeypatch.setattr(clock, "_system_ns", mine)
    monkeypatch.setattr(clock, "_ahead_ns", 0)
    return mine


def hear(system: System, *, ahead: float, slow: float = 0.002) -> None:
    """The database says so much more than we would, in an answer that takes so long."""
    asked = clock.ask()
    system.ns += round(slow * clock.SECOND_NS)
    clock.hear(clock.EPOCH + timedelta(microseconds=system.ns // 1000) + timedelta(seconds=ahead), asked)


def ahead(system: System) -> float:
    return (clock.now_ns() - system.ns) / clock.SECOND_NS


@pytest.mark.parametrize("seconds", [0.0, 0.9, -0.9])
def test_it_keeps_to_its_own_clock_when_that_is_right(system: System, seconds: float) -> None:
    hear(system, ahead=seconds)
    assert ahead(system) == 0


@pytest.mark.parametrize("seconds", [5.0, -5.0, 90_000.0, -90_000.0])
def test_it_follows_the_databases_clock(system: System, seconds: float) -> None:
    hear(system, ahead=seconds)
    assert ahead(system) == seconds
    assert clock.now() == clock.EPOCH + timedelta(microseconds=clock.now_ns() // 1000)
    assert uuid7().int >> 80 == clock.now_ns() // 1_000_000
    hear(system, ahead=0)
    assert ahead(system) == 0


def test_a_slow_answer_says_nothing(system: System) -> None:
    """A process that was stopped between question and answer would take an old time for the present one."""
    hear(system, ahead=60)
    hear(system, ahead=-23, slow=23)
    assert ahead(system) == 60


def test_a_clock_that_is_set_back_in_between_says_nothing(system: System) -> None:
    hear(system, ahead=0, slow=-3600)
    assert ahead(system) == 0
