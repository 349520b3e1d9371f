"""`python -m benchmarks [--quick] [--rounds N] [--seconds S] [--json FILE]`: set up, measure, check the books.

Exit status 1 if a request failed or the books differ from what was served; a missed target is only said.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks import programs, report, stand
from benchmarks.runs import Results, Runner, check_books, say
from benchmarks.scenarios import DEFAULT, QUICK


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round: does it run, not how fast")
    parser.add_argument("--rounds", type=int, help="interleaved rounds; medians are printed")
    parser.add_argument("--seconds", type=float, help="of each run")
    parser.add_argument("--json", type=Path, help="write every run's figures to this file")
    options = parser.parse_args(arguments)
    plan = QUICK if options.quick else DEFAULT
    plan = replace(plan, rounds=options.rounds or plan.rounds, seconds=options.seconds or plan.seconds)
    home = Path(os.environ.get("COUNTERFOIL_HOME") or stand.ROOT / "var").resolve() / "bench"
    began = time.monotonic()
    results = Results()
    try:
        programs.build()
        say(f"setting up in {home}")
        with stand.built(home) as built:
            runner = Runner(built, plan, results)
            for step in (runner.warm_up, runner.main, runner.commit_delay, runner.saturated):
                step()
            built.servers.close()
            books = check_books(results)
    except programs.Failed as failure:
        print(failure, file=sys.stderr)
        return 1
    print("\n".join([*report.lines(results), books, f"took {time.monotonic() - began:.0f} s"]))
    if options.json:
        options.json.write_text(json.dumps([[*where, run] for where, runs in results.runs.items() for run in runs]))
    for failure_text in results.failures:
        print(f"FAILED: {failure_text}", file=sys.stderr)
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
