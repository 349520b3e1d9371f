"""One deployment's health in several processes at once, through a real database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone

from gateway.catalogue.models import Deployment
from gateway.failover import services
from gateway.failover.models import Circuit, HealthEvent, RecentResults

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0  # this machine may be busy; what is promised is a second

pytestmark = pytest.mark.django_db(transaction=True)


class Process:
    def __init__(self) -> None:
        names = ("NAME", "USER", "PASSWORD", "HOST", "PORT")
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.failover.board_process"],
            cwd=ROOT,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "gateway.settings"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.tell(json.dumps({name: connection.settings_dict[name] for name in names}))

    def tell(self, line: str) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()

    def hear(self) -> Any:
        assert self.child.stdout is not None
        return json.loads(self.child.stdout.readline())

    def ask(self, what: str, deployment: Deployment, *more: object) -> Any:
        self.tell(" ".join(map(str, (what, deployment.pk, *more))))
        return self.hear()

    def end(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.close()
        assert self.child.wait(timeout=30) == 0


@pytest.fixture
def processes() -> Iterator[Callable[[int], list[Process]]]:
    started: list[Process] = []

    def start(count: int) -> list[Process]:
        found = [Process() for _ in range(count)]
        started.extend(found)
        assert [process.hear() for process in found] == ["ready"] * count
        return found

    yield start
    for process in started:
        process.child.kill()
        process.child.wait()
        assert process.child.stdin is not None and process.child.stdout is not None
        process.child.stdin.close()
        process.child.stdout.close()
    until_left()


def until_left() -> None:
    """The sessions of processes that are gone have ended too: the next test's tables are its own."""
    until(
        lambda: count("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'counterfoil health'") == 0,
        "a board's session is still there",
    )


def count(statement: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(statement + " AND datname = current_database()")
        return int(cursor.fetchone()[0])


def until(holds: Callable[[], bool], otherwise: str) -> None:
    by = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < by, otherwise
        time.sleep(0.02)


def until_state(process: Process, deployment: Deployment, state: str) -> None:
    until(lambda: process.ask("state", deployment) == state, f"it never became {state}")


def until_circuit(deployment: Deployment, **values: object) -> None:
    until(lambda: Circuit.objects.filter(deployment=deployment, **values).exists(), f"never {values}")


def stay_open(deployment: Deployment) -> None:
    """For longer than its five seconds: time enough to look at it."""
    until_circuit(deployment, state="open")
    Circuit.objects.filter(deployment=deployment).update(open_until=timezone.now() + timedelta(minutes=5))


def half_open(deployment: Deployment) -> None:
    """As if the time had passed."""
    Circuit.objects.filter(deployment=deployment).update(open_until=timezone.now() - timedelta(seconds=1))


def events(deployment: Deployment) -> list[tuple[str, str]]:
    return list(HealthEvent.objects.filter(deployment=deployment).order_by("id").values_list("before", "after"))


Start = Callable[[int], list[Process]]


def test_it_opens_in_one_process_and_is_open_in_all(processes: Start, deployment: Deployment) -> None:
    one, two = processes(2)
    assert one.ask("fail", deployment, 5) == "open"
    stay_open(deployment)
    until_state(two, deployment, "open")
    circuit = Circuit.objects.get()
    assert (circuit.state, circuit.openings) == ("open", 1)
    assert circuit.reason == "5 failures in a row, the last: connect"
    assert events(deployment) == [("closed", "open")]
    assert str(one.child.pid) in HealthEvent.objects.get().process


def test_it_closes_in_all_when_the_probe_of_one_was_good(processes: Start, deployment: Deployment) -> None:
    one, two = processes(2)
    one.ask("fail", deployment, 5)
    stay_open(deployment)
    until_state(two, deployment, "open")
    half_open(deployment)
    until_state(two, deployment, "half_open")
    assert two.ask("claim", deployment) is True
    assert two.ask("good_probe", deployment) == "closed"
    until_state(one, deployment, "closed")
    assert one.ask("fail", deployment, 4) == "closed"  # what was counted before is forgotten
    assert events(deployment) == [("closed", "open"), ("half_open", "closed")]


def test_it_hands_out_one_probe_whoever_asks(processes: Start, deployment: Deployment) -> None:
    found = processes(4)
    found[0].ask("fail", deployment, 5)
    stay_open(deployment)
    for process in found:
        until_state(process, deployment, "open")
    for lap in range(5):
        half_open(deployment)
        for process in found:
            until_state(process, deployment, "half_open")
        for process in found:
            process.tell(f"claim {deployment.pk}")
        won = [process.hear() for process in found]
        assert won.count(True) == 1
        winner = found[won.index(True)]
        assert [process.ask("claim", deployment) for process in found] == [False] * 4
        assert winner.ask("bad_probe", deployment) == "open"
        until_circuit(deployment, openings=lap + 2, probe_by=None)
    assert events(deployment) == [("closed", "open")] + [("half_open", "open")] * 5


def test_it_takes_the_probe_of_a_process_that_died(processes: Start, deployment: Deployment) -> None:
    one, two = processes(2)
    one.ask("fail", deployment, 5)
    half_open(deployment)
    until_state(one, deployment, "half_open")
    assert one.ask("claim", deployment)
    one.child.kill()
    until_state(two, deployment, "open")
    Circuit.objects.update(probe_until=timezone.now() - timedelta(seconds=1))  # as if the time had passed
    until_state(two, deployment, "half_open")
    assert two.ask("claim", deployment)


def test_it_gives_its_probe_back_when_it_ends(processes: Start, deployment: Deployment) -> None:
    one, two = processes(2)
    one.ask("fail", deployment, 5)
    half_open(deployment)
    until_state(one, deployment, "half_open")
    assert one.ask("claim", deployment)
    one.end()
    assert Circuit.objects.get().probe_by is None
    until_state(two, deployment, "half_open")


def test_it_frees_the_probe_of_a_client_that_left(processes: Start, deployment: Deployment) -> None:
    one, two = processes(2)
    one.ask("fail", deployment, 5)
    half_open(deployment)
    until_state(one, deployment, "half_open")
    assert one.ask("claim", deployment)
    one.ask("abandon", deployment)
    until_circuit(deployment, probe_by=None)
    until_state(two, deployment, "half_open")
    assert two.ask("claim", deployment)


def test_it_rests_in_all(processes: Start, deployment: Deployment) -> None:
    one, two = processes(2)
    assert one.ask("rest", deployment, 400) == "resting"
    until_state(two, deployment, "resting")
    assert 200 < two.ask("opens_in", deployment) <= 400
    one.ask("rest", deployment, 5)  # sooner over: no news
    assert events(deployment) == [("closed", "resting")]


def test_it_obeys_a_person_everywhere(processes: Start, deployment: Deployment, admin: User) -> None:
    found = processes(2)
    services.take_out(deployment=deployment, by=admin, reason="new keys")
    for process in found:
        until_state(process, deployment, "open")
        assert process.ask("claim", deployment) is False
    services.put_back(deployment=deployment, by=admin)
    for process in found:
        until_state(process, deployment, "closed")
    services.always_try(deployment=deployment, by=admin, reason="we know")
    until_circuit(deployment, forced="closed")
    until(lambda: found[0].ask("fail", deployment, 9) == "closed", "it does not try always")
    services.put_back(deployment=deployment, by=admin)
    until(lambda: found[0].ask("fail", deployment, 5) == "open", "its answers never decided again")
    until_circuit(deployment, state="open")  # it has told so: what comes later than a person's word would stand
    services.forget_failures(deployment=deployment, by=admin)
    for process in found:
        until_state(process, deployment, "closed")
    assert {event.person for event in HealthEvent.objects.exclude(person="")} == {"alice"}


def test_it_tells_how_many_failed(processes: Start, deployment: Deployment) -> None:
    (one,) = processes(1)
    one.ask("succeed", deployment)
    one.ask("fail", deployment, 2)
    until(lambda: RecentResults.objects.filter(good=1, bad=2).exists(), "nothing was counted")


def test_it_forgets_a_deployment_that_is_gone(processes: Start, deployment: Deployment) -> None:
    (one,) = processes(1)
    one.ask("fail", deployment, 5)
    until_circuit(deployment, state="open")
    deployment.model.delete()
    assert not Circuit.objects.exists()
    until(lambda: one.ask("state", deployment) == "closed", "it lingers")
