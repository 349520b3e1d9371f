"""`python -m benchmarks.desk`: what limits cost at the desk itself, in several processes, without HTTP.

Each process routes, admits and settles in a closed loop, as a server does for a request, on embedded PostgreSQL with
fsync on. Exit status 1 if the books differ; a missed target is only said.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from benchmarks import books, desk_report, desks, engines
from benchmarks.cast import FIFTY, HOT, POPULATIONS, Key, Population, seed, seed_catalogue
from benchmarks.desk_report import DeskResults
from benchmarks.programs import Failed, say

IN_FLIGHT = (1, 16, 64, 256)  # over all processes
UNUSED = "http://127.0.0.1:9/v1"  # nothing is sent upstream


@dataclass(frozen=True)
class DeskPlan:
    """In turns: each number in flight with each population."""

    seconds: float
    processes: int = 2
    in_flight: Sequence[int] = IN_FLIGHT
    populations: Sequence[Population] = (HOT, FIFTY)
    rounds: int = 1
    slow_commits: bool = False

    @property
    def title(self) -> str:
        return f"The desk alone, {self.processes} processes" + (", commit_delay = 5000" * self.slow_commits)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    plan = DeskPlan(
        seconds=options.seconds,
        processes=options.processes,
        in_flight=options.in_flight,
        populations=[population for population in POPULATIONS if population.name in options.tenants],
        rounds=options.rounds,
        slow_commits=options.commit_delay,
    )
    home = engines.default_home()
    try:
        say(f"setting up in {home}")
        with engines.running(home):
            seed_catalogue(UNUSED)
            results = measure(home, {population.name: seed(population) for population in plan.populations}, plan)
            found = books.check()
            shards = list(books.shards())
    except Failed as failure:
        print(failure, file=sys.stderr)
        return 1
    shown = [*desk_report.lines(results, plan.title), "\nTargets (issue 3)", *desk_report.targets(results)]
    print("\n".join([*shown, *shards, found.text]))
    if options.json:
        options.json.write_text(json.dumps(results.rows("desk")))
    for text in found.failures:
        print(f"FAILED: {text}", file=sys.stderr)
    return 1 if found.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.desk", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--in-flight", type=int, nargs="+", default=IN_FLIGHT, help="over all processes")
    names = [population.name for population in POPULATIONS]
    parser.add_argument("--tenants", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=1, help="interleaved rounds; medians are printed")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run")
    parser.add_argument("--commit-delay", action="store_true", help="commits wait 5 ms, as on a slow disk")
    parser.add_argument("--json", type=Path, help="write every run's figures to this file")
    return parser


def measure(home: Path, keys: Mapping[str, list[Key]], plan: DeskPlan) -> DeskResults:
    results = DeskResults()
    slow = engines.slow_commits(home) if plan.slow_commits else nullcontext()
    mine = {population.name: keys[population.name] for population in plan.populations}
    with slow, desks.running(engines.postmaster(home), plan.processes, mine) as running:
        for population in plan.populations:
            running.warm_up(population.name)
        for number in range(plan.rounds):
            for level, in_flight in enumerate(plan.in_flight):
                # ABBA: what the machine does meanwhile meets all alike.
                for population in plan.populations[:: 1 if (number + level) % 2 == 0 else -1]:
                    say(f"{plan.title}, round {number + 1}: {in_flight} in flight, {population.title}")
                    results.runs[in_flight, population.name].append(
                        running.run(population.name, in_flight, plan.seconds)
                    )
    return results


if __name__ == "__main__":
    sys.exit(main())
