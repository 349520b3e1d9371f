"""Processes with a desk each, driven together (`desk_process` is what runs in them)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks import engines
from benchmarks.cast import Key
from benchmarks.programs import Failed, Figures

ROOT = Path(__file__).resolve().parents[1]
WARM_SECONDS = 0.3


@contextmanager
def running(postgres: int, number: int, keys: Mapping[str, list[Key]]) -> Iterator[Desks]:
    """Keys by population. At the end each has written all that it was given."""
    desks = Desks(postgres)
    try:
        desks.start(number, keys)
        yield desks
    finally:
        desks.stop()


@dataclass
class Desks:
    """Processes with a desk each. Their CPU and PostgreSQL's are read at the same two moments."""

    postgres: int
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, number: int, keys: Mapping[str, list[Key]]) -> None:
        names = {population: [key.public_id for key in found] for population, found in keys.items()}
        for offset in range(number):
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.desk_process"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self.processes.append(process)
            _tell(process, {"keys": names, "offset": offset * 5})
        for process in self.processes:
            _hear(process)

    def warm_up(self, population: str) -> None:
        """What is loaded, learned and planned at first use."""
        self.run(population, 16, 0.3)

    def run(self, population: str, in_flight: int, seconds: float) -> Figures:
        """Longer than asked for only on a machine so busy that nothing was settled meanwhile."""
        for factor in (1, 3, 9):
            reports, postgres = self._run(population, in_flight, seconds * factor)
            if any(report["requests"] for report in reports):
                return _figures(reports, postgres)
        raise Failed(f"No request was settled in {seconds * factor:.1f} s.")

    def _run(self, population: str, in_flight: int, seconds: float) -> tuple[list[Figures], float]:
        """What each process says, and PostgreSQL's seconds of CPU meanwhile."""
        begin = time.monotonic() + WARM_SECONDS
        end = begin + seconds
        for number, process in enumerate(self.processes):
            lanes = in_flight // len(self.processes) + (number < in_flight % len(self.processes))
            _tell(process, {"population": population, "lanes": lanes, "begin": begin, "end": end})
        spent = []
        for moment in (begin, end):
            time.sleep(max(0.0, moment - time.monotonic()))
            spent.append(engines.tree_cpu(self.postgres))
        return [_hear(process) for process in self.processes], spent[1] - spent[0]

    def stop(self) -> None:
        """Each writes what is left, and gives its lease back. They are asked in turn, and end by themselves."""
        for process in self.processes:
            if process.poll() is None and process.stdin is not None:
                process.stdin.close()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _tell(process: subprocess.Popen[str], message: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise Failed("A process with a desk has ended; what it says is above.")
    return json.loads(line)


def _figures(reports: list[Figures], postgres: float) -> Figures:
    """Of all processes together; CPU in us per request."""
    requests = sum(report["requests"] for report in reports)
    total = {
        name: sum(report[name] for report in reports) for name in ("process", "thread", "routing", "batches", "items")
    }
    admissions = sorted(chain.from_iterable(report["admissions_us"] for report in reports))
    return {
        "requests": requests,
        "rps": sum(report["requests"] / report["wall"] for report in reports),
        "desk_us": (total["process"] - total["routing"]) * 1e6 / requests,
        "thread_us": total["thread"] * 1e6 / requests,
        "routing_us": total["routing"] * 1e6 / requests,
        "postgres_us": postgres * 1e6 / requests,
        "p50_ms": admissions[len(admissions) // 2] / 1000,
        "p99_ms": admissions[len(admissions) * 99 // 100] / 1000,
        "batch": total["items"] / max(1, total["batches"]),
        "batches_s": sum(report["batches"] / report["wall"] for report in reports),
    }
