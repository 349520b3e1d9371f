"""`python -m benchmarks.desk`: what limits cost at the desk itself, in several processes, without HTTP.

Each process routes, admits and settles in a closed loop, as a server does for a request, on embedded PostgreSQL with
fsync on. Exit status 1 if the books differ; a missed target is only said.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from benchmarks import books, desk_report, desks, engines
from benchmarks.cast import POPULATIONS, Population, seed, seed_catalogue
from benchmarks.desk_report import DeskResults
from benchmarks.programs import Failed, say

IN_FLIGHT = (1, 16, 64, 256)  # over all processes
UNUSED = "http://127.0.0.1:9/v1"  # nothing is sent upstream


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    home = engines.default_home()
    results = DeskResults()
    populations = [population for population in POPULATIONS if population.name in options.tenants]
    try:
        say(f"setting up in {home}")
        with engines.running(home):
            seed_catalogue(UNUSED)
            keys = {population.name: seed(population) for population in populations}
            slow = engines.slow_commits(home) if options.commit_delay else nullcontext()
            with slow, desks.running(engines.postmaster(home), options.processes, keys) as running:
                measure(running, results, options.in_flight, populations, options.rounds, options.seconds)
            found = books.check()
            shards = list(books.shards())
    except Failed as failure:
        print(failure, file=sys.stderr)
        return 1
    print("\n".join([*desk_report.lines(results, options.processes), *shards, found.text]))
    if options.json:
        options.json.write_text(json.dumps([[*where, run] for where, runs in results.runs.items() for run in runs]))
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


def measure(
    running: desks.Desks,
    results: DeskResults,
    levels: Sequence[int],
    populations: Sequence[Population],
    rounds: int,
    seconds: float,
) -> None:
    for population in populations:  # what is loaded, learned and planned at first use
        running.run(population.name, 16, 0.3)
    for number in range(rounds):
        for level, in_flight in enumerate(levels):
            # In turns, ABBA: what the machine does meanwhile meets all alike.
            for population in populations[:: 1 if (number + level) % 2 == 0 else -1]:
                say(f"the desk, round {number + 1} of {rounds}: {in_flight} in flight, {population.title}")
                results.runs[in_flight, population.name].append(running.run(population.name, in_flight, seconds))


if __name__ == "__main__":
    sys.exit(main())
