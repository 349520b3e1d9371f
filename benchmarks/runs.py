"""The runs themselves, interleaved: A B B A, so that what the machine does meanwhile meets both alike."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

from benchmarks.programs import Figures, Load
from benchmarks.scenarios import COMMIT_DELAY, MAIN, ONE, SATURATION, SIXTEEN, SIXTY_FOUR, Plan, Scenario
from benchmarks.stand import MODEL, Server, Stand

DIRECT, OURS = "direct", "counterfoil"


@dataclass
class Results:
    """Every run's figures, by part, scenario and target."""

    runs: defaultdict[tuple[str, str, str], list[Figures]] = field(default_factory=lambda: defaultdict(list))
    upstream_saw: int = 0  # requests that came through Counterfoil
    yardstick: list[float] = field(default_factory=list)  # ms of CPU, before each run
    failures: list[str] = field(default_factory=list)

    def of(self, part: str, scenario: str, target: str) -> list[Figures]:
        return self.runs[part, scenario, target]

    def all(self) -> list[Figures]:
        return [run for runs in self.runs.values() for run in runs]

    def take(self, part: str, scenario: str, target: str, run: Figures) -> None:
        self.runs[part, scenario, target].append(run)
        if run["err"] or not (run["ok"] or run.get("events")):
            self.failures.append(
                f"{part} {scenario} {target}: {run['err']} of {run['ok'] + run['err']} requests "
                f"failed; {run['first_error'] or 'none was answered'}"
            )


class Runner:
    def __init__(self, stand: Stand, plan: Plan, results: Results) -> None:
        self.stand, self.plan, self.results = stand, plan, results
        self.server: Server = stand.start_server("server")
        self._deadline = time.monotonic() + plan.most_s

    def warm_up(self) -> None:
        for scenario in (SIXTY_FOUR, MAIN[-1]):
            self._ours("warm-up", scenario, seconds=0.7)

    def _rounds(self, most: int) -> Iterator[int]:
        """At least one; no more than the time allows."""
        for number in range(most):
            if number and time.monotonic() > self._deadline:
                say("out of time: no further round")
                return
            yield number

    def main(self) -> None:
        for number in self._rounds(self.plan.rounds):
            for scenario in MAIN:
                for target in (DIRECT, OURS) if number % 2 == 0 else (OURS, DIRECT):
                    say(f"round {number + 1} of {self.plan.rounds}: {scenario.title}, {target}")
                    self._run("main", scenario, target)

    def commit_delay(self) -> None:
        """As on a slow disk: each flush waits 5 ms."""
        with slow_commits(self.stand):
            for number in self._rounds(max(1, self.plan.rounds - 1)):
                for scenario in COMMIT_DELAY:
                    say(f"commit_delay = 5000, round {number + 1}: {scenario.title}")
                    self._run("commit_delay", scenario, OURS)

    def saturated(self) -> None:
        """Whole answers while streams keep the event loop busy; and those of an idle process on the same books."""
        neighbour = self.stand.start_server("neighbour")
        self._ours("warm-up", ONE, seconds=0.5, server=neighbour)
        for number in self._rounds(max(1, self.plan.rounds - 1)):
            say(f"event loop saturated, round {number + 1}")
            self.stand.mock.set(SATURATION.mock)
            before = self.stand.mock.served()
            busy = self._load(SATURATION.load, self.server, seconds=self.plan.seconds + 0.8, warm=0.4)
            beside = [
                (SIXTEEN, "same process", self._load(SIXTEEN.load, self.server, seconds=self.plan.seconds, warm=0.6)),
                (ONE, "its neighbour", self._load(ONE.load, neighbour, seconds=self.plan.seconds, warm=0.6)),
            ]
            for scenario, target, load in beside:
                self.results.take("saturated", scenario.name, target, load.figures())
            self.results.take("saturated", SATURATION.name, "same process", busy.figures())
            self.results.upstream_saw += self.stand.mock.served() - before

    def _run(self, part: str, scenario: Scenario, target: str) -> None:
        seconds = self.plan.seconds_of(scenario)
        self.results.yardstick.append(yardstick())
        if target == OURS:
            self._ours(part, scenario, seconds=seconds)
            return
        self.stand.mock.set(scenario.mock)
        load = Load(
            self.stand.mock.url,
            "-",
            "gpt-4o-mini",
            scenario.load,
            seconds=seconds,
            warm=self.plan.warm,
            trees={"mock": self.stand.mock.pid},
        )
        self.results.take(part, scenario.name, DIRECT, load.figures())

    def _ours(self, part: str, scenario: Scenario, *, seconds: float, server: Server | None = None) -> None:
        self.stand.mock.set(scenario.mock)
        before = self.stand.mock.served()
        run = self._load(scenario.load, server or self.server, seconds=seconds, warm=self.plan.warm).figures()
        self.results.upstream_saw += self.stand.mock.served() - before
        self.results.take(part, scenario.name, OURS, run)

    def _load(self, load: str, server: Server, *, seconds: float, warm: float) -> Load:
        trees = {"server": server.process.pid, "postgres": self.stand.postgres, "mock": self.stand.mock.pid}
        return Load(server.url, self.stand.key, MODEL, load, seconds=seconds, warm=warm, trees=trees)


@contextmanager
def slow_commits(stand: Stand) -> Iterator[None]:
    """commit_siblings = 0: else nothing waits when the desk's is the only open transaction."""
    settings = ("commit_delay = 5000", "commit_siblings = 0")
    try:
        _as_superuser(stand, [f"ALTER SYSTEM SET {setting}" for setting in settings])
        yield
    finally:
        _as_superuser(stand, ["ALTER SYSTEM RESET commit_delay", "ALTER SYSTEM RESET commit_siblings"])


def _as_superuser(stand: Stand, statements: Sequence[str]) -> None:
    from gateway.embedded import layout

    place = str(layout.sockets(stand.home))
    with psycopg.connect(host=place, user=layout.SUPERUSER, dbname=layout.DATABASE, autocommit=True) as connection:
        for statement in [*statements, "SELECT pg_reload_conf()"]:
            connection.execute(statement.encode())


def check_books(results: Results) -> str:
    """After the servers have stopped: exactly one record per request that the upstream saw, and no drift."""
    from gateway.ledger.models import UsageRecord
    from gateway.ledger.verification import verify

    found = verify()
    completed = UsageRecord.objects.filter(status="completed").count()
    answered = sum(run["ok"] for (_, _, target), runs in results.runs.items() if target != DIRECT for run in runs)
    results.failures += found.drift
    if found.open_holds:
        results.failures.append(f"{found.open_holds} holds are open although the servers have stopped")
    if found.records < results.upstream_saw:
        results.failures.append(f"the upstream saw {results.upstream_saw} requests, the ledger {found.records}")
    if completed < answered:
        results.failures.append(f"{answered} requests were answered, but {completed} records are completed")
    return (
        f"books: the upstream saw {results.upstream_saw} requests, the ledger has {found.records} records "
        f"({completed} completed), drift: {len(found.drift)}"
    )


def yardstick() -> float:
    """Milliseconds of CPU for a fixed piece of Python: how fast this machine is now, its neighbours included."""
    began = time.thread_time()
    table: dict[int, list[int]] = {}
    for number in range(20_000):
        table.setdefault(number % 997, []).append(len(str(number)))
    return (time.thread_time() - began) * 1000


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
