"""The runs themselves, interleaved: A B B A, so that what the machine does meanwhile meets both alike."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks import books, engines
from benchmarks.cast import MODEL, POPULATIONS, SINGLE, Population
from benchmarks.programs import Figures, Load, say
from benchmarks.scenarios import COMMIT_DELAY, LIMITED, MAIN, ONE, SATURATION, SIXTEEN, SIXTY_FOUR, Plan, Scenario
from benchmarks.stand import Server, Stand
from benchmarks.timed_server import Admissions

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
                    seconds = self.plan.seconds_of(scenario)
                    if target == DIRECT:
                        self._direct("main", scenario, seconds=seconds)
                    else:
                        self._ours("main", scenario, seconds=seconds)

    def commit_delay(self) -> None:
        """As on a slow disk: each flush waits 5 ms."""
        with engines.slow_commits(self.stand.home):
            for number in self._rounds(max(1, self.plan.rounds - 1)):
                for scenario in COMMIT_DELAY:
                    say(f"commit_delay = 5000, round {number + 1}: {scenario.title}")
                    self._ours("commit_delay", scenario, seconds=self.plan.seconds)

    def saturated(self) -> None:
        """Whole answers while streams keep the event loop busy; and those of an idle process on the same books."""
        neighbour = self.stand.start_server("neighbour")
        self._ours("warm-up", ONE, seconds=0.5, servers=[neighbour])
        for number in self._rounds(max(1, self.plan.rounds - 1)):
            say(f"event loop saturated, round {number + 1}")
            self.stand.mock.set(SATURATION.mock)
            before = self.stand.mock.served()
            seconds = self.plan.seconds
            busy = self._load(SATURATION.load, [self.server], SINGLE, seconds=seconds + 0.8, warm=0.4)
            beside = [
                (SIXTEEN, "same process", self._load(SIXTEEN.load, [self.server], SINGLE, seconds=seconds, warm=0.6)),
                (ONE, "its neighbour", self._load(ONE.load, [neighbour], SINGLE, seconds=seconds, warm=0.6)),
            ]
            for scenario, target, load in beside:
                self.results.take("saturated", scenario.name, target, load.figures())
            self.results.take("saturated", SATURATION.name, "same process", busy.figures())
            self.results.upstream_saw += self.stand.mock.served() - before

    def limits(self) -> None:
        """Two servers, keys in turn: limits of one tenant, of fifty, none at all, and the direct call."""
        self.stand.servers.close()
        both = [self.stand.start_server(name, timed=True) for name in ("first", "second")]
        for warm in POPULATIONS:
            self._ours("warm-up", SIXTEEN, warm.name, seconds=0.3, servers=both, population=warm)
        for number in self._rounds(self.plan.limits_rounds):
            for level, scenario in enumerate(LIMITED):
                say(f"limits, round {number + 1} of {self.plan.limits_rounds}: {scenario.title}")
                targets: list[Population | None] = [None, *POPULATIONS]
                for population in targets[:: 1 if (number + level) % 2 == 0 else -1]:
                    seconds = self.plan.limits_seconds
                    if population is None:
                        self._direct("limits", scenario, seconds=seconds)
                    else:
                        name = population.name
                        self._ours("limits", scenario, name, seconds=seconds, servers=both, population=population)
        self.stand.servers.close()
        self._add_admissions(Admissions(server.admissions for server in both))

    def _add_admissions(self, noted: Admissions) -> None:
        for (part, _, target), runs in self.results.runs.items():
            if part != "limits" or target == DIRECT:
                continue
            for run in runs:
                took = noted.between(run["began"], run["began"] + run["secs"])
                for share in (50, 99):
                    run[f"admission{share}"] = took[len(took) * share // 100] if took else float("nan")

    def _direct(self, part: str, scenario: Scenario, *, seconds: float) -> None:
        self.results.yardstick.append(yardstick())
        mock = self.stand.mock
        mock.set(scenario.mock)
        load = Load(
            [mock.url],
            [],
            "gpt-4o-mini",
            scenario.load,
            seconds=seconds,
            warm=self.plan.warm,
            trees={"mock": [mock.pid]},
        )
        self.results.take(part, scenario.name, DIRECT, load.figures())

    def _ours(
        self,
        part: str,
        scenario: Scenario,
        target: str = OURS,
        *,
        seconds: float,
        servers: Sequence[Server] = (),
        population: Population = SINGLE,
    ) -> None:
        self.results.yardstick.append(yardstick())
        self.stand.mock.set(scenario.mock)
        before = self.stand.mock.served()
        load = self._load(scenario.load, servers or [self.server], population, seconds=seconds, warm=self.plan.warm)
        run = load.figures()
        self.results.upstream_saw += self.stand.mock.served() - before
        self.results.take(part, scenario.name, target, run)

    def _load(
        self, load: str, servers: Sequence[Server], population: Population, *, seconds: float, warm: float
    ) -> Load:
        return Load(
            [server.url for server in servers],
            [key.secret for key in self.stand.keys[population.name]],
            MODEL,
            load,
            seconds=seconds,
            warm=warm,
            trees={
                "server": [server.process.pid for server in servers],
                "postgres": [self.stand.postgres],
                "mock": [self.stand.mock.pid],
            },
        )


def check_books(results: Results) -> str:
    """After the servers have stopped: exactly one record per request that the upstream saw, and no drift."""
    found = books.check()
    answered = sum(run["ok"] for (_, _, target), runs in results.runs.items() if target != DIRECT for run in runs)
    results.failures += found.failures
    if found.records < results.upstream_saw:
        results.failures.append(f"the upstream saw {results.upstream_saw} requests, the ledger {found.records}")
    if found.completed < answered:
        results.failures.append(f"{answered} requests were answered, but {found.completed} records are completed")
    return f"{found.text}; the upstream saw {results.upstream_saw} requests"


def yardstick() -> float:
    """Milliseconds of CPU for a fixed piece of Python: how fast this machine is now, its neighbours included."""
    began = time.thread_time()
    table: dict[int, list[int]] = {}
    for number in range(20_000):
        table.setdefault(number % 997, []).append(len(str(number)))
    return (time.thread_time() - began) * 1000
