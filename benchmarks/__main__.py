"""`python -m benchmarks [--quick] [--rounds N] [--seconds S] [--json FILE]`: set up, measure, check the books.

Exit status 1 if a request failed or the books differ from what was served; a missed target is only said.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks import books, desk, desk_report, engines, programs, report, stand
from benchmarks.desk import DeskPlan
from benchmarks.desk_report import BUSY, DeskResults
from benchmarks.programs import say
from benchmarks.runs import Results, Runner, check_books
from benchmarks.scenarios import DEFAULT, QUICK, Plan


@dataclass
class Measured:
    """By servers and load client, and by desks alone; and what is said of the books."""

    servers: Results = field(default_factory=Results)
    desk: DeskResults = field(default_factory=DeskResults)
    slow_desk: DeskResults = field(default_factory=DeskResults)
    said: list[str] = field(default_factory=list)

    def json(self) -> str:
        rows = [[*where, run] for where, runs in self.servers.runs.items() for run in runs]
        return json.dumps([*rows, *self.desk.rows("desk"), *self.slow_desk.rows("slow desk")])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round: does it run, not how fast")
    parser.add_argument("--rounds", type=int, help="interleaved rounds; medians are printed")
    parser.add_argument("--seconds", type=float, help="of each run")
    parser.add_argument("--json", type=Path, help="write every run's figures to this file")
    options = parser.parse_args(arguments)
    plan = QUICK if options.quick else DEFAULT
    plan = replace(plan, rounds=options.rounds or plan.rounds, seconds=options.seconds or plan.seconds)
    began = time.monotonic()
    try:
        measured = measure(plan)
    except programs.Failed as failure:
        print(failure, file=sys.stderr)
        return 1
    print("\n".join([*lines(measured, plan), *measured.said, f"took {time.monotonic() - began:.0f} s"]))
    if options.json:
        options.json.write_text(measured.json())
    for failure_text in measured.servers.failures:
        print(f"FAILED: {failure_text}", file=sys.stderr)
    return 1 if measured.servers.failures else 0


def measure(plan: Plan) -> Measured:
    measured, home = Measured(), engines.default_home()
    programs.build()
    say(f"setting up in {home}")
    with stand.built(home) as built:
        runner = Runner(built, plan, measured.servers)
        for step in (runner.warm_up, runner.main, runner.commit_delay, runner.saturated, runner.limits):
            step()
        measured.said.append(check_books(measured.servers))
        usual, slow = _desk_plans(plan)
        measured.desk = desk.measure(home, built.keys, usual)
        measured.slow_desk = desk.measure(home, built.keys, slow)
        found = books.check()
        measured.servers.failures += found.failures
        measured.said += [f"after the desks alone: {found.text}", *books.shards()]
    return measured


def _desk_plans(plan: Plan) -> tuple[DeskPlan, DeskPlan]:
    """As usual, and with commits as on a slow disk, where what is hot shows."""
    usual = DeskPlan(plan.desk_seconds, rounds=plan.limits_rounds)
    return usual, replace(usual, in_flight=(16, BUSY), slow_commits=True)


def lines(measured: Measured, plan: Plan) -> Iterator[str]:
    usual, slow = _desk_plans(plan)
    yield from report.lines(measured.servers)
    yield from desk_report.lines(measured.desk, usual.title)
    yield from desk_report.lines(measured.slow_desk, slow.title)
    yield from report.targets(measured.servers)
    yield from desk_report.targets(measured.desk)
    yield from desk_report.share_of_hot(measured.slow_desk, ", commit_delay = 5000")
    yield report.noise(measured.servers)


if __name__ == "__main__":
    sys.exit(main())
