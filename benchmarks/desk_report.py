"""The figures of the desk alone, as a table for people: medians over the rounds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from benchmarks.cast import FIFTY, HOT, POPULATIONS
from benchmarks.programs import Figures
from benchmarks.tables import table, target

TITLES = {population.name: population.title for population in POPULATIONS}
DESK_US, ADMISSION_MS, SHARE = 80, 15, 0.7
BUSY = 64  # in flight, where the targets are


class DeskResults:
    """Figures by requests in flight and population, in the order in which they came."""

    def __init__(self) -> None:
        self.runs: defaultdict[tuple[int, str], list[Figures]] = defaultdict(list)

    def median(self, in_flight: int, population: str, name: str) -> float:
        values = [run[name] for run in self.runs.get((in_flight, population), [])]
        return statistics.median(values) if values else float("nan")

    def rows(self, part: str) -> list[Any]:
        """Every run, for JSON."""
        return [[part, f"c{where[0]}", where[1], run] for where, runs in self.runs.items() for run in runs]


def lines(results: DeskResults, title: str) -> Iterator[str]:
    head = [
        "",
        "req/s",
        "desk us/req",
        "of it thread",
        "route, claims",
        "PostgreSQL us",
        "admission p50 ms",
        "p99 ms",
        "items a batch",
    ]
    rows = []
    order = list(TITLES)
    for in_flight, population in sorted(results.runs, key=lambda place: (place[0], order.index(place[1]))):
        found = {
            name: results.median(in_flight, population, name)
            for name in ("rps", "desk_us", "thread_us", "routing_us", "postgres_us", "p50_ms", "p99_ms", "batch")
        }
        rows.append(
            [
                f"{in_flight} in flight, {TITLES[population]}",
                *(f"{found[name]:.0f}" for name in ("rps", "desk_us", "thread_us", "routing_us", "postgres_us")),
                *(f"{found[name]:.2f}" for name in ("p50_ms", "p99_ms")),
                f"{found['batch']:.1f}",
            ]
        )
    yield from table(f"{title} (desk: its Python CPU, that of its thread included)", head, rows)


def targets(results: DeskResults) -> Iterator[str]:
    """Only those that were measured."""
    if (BUSY, HOT.name) in results.runs:
        yield target("desk, 64 in flight", results.median(BUSY, HOT.name, "desk_us"), DESK_US, "us CPU per request")
        yield target("p99 of admission, 64 in flight", results.median(BUSY, HOT.name, "p99_ms"), ADMISSION_MS, "ms")
    yield from share_of_hot(results)


def share_of_hot(results: DeskResults, beside: str = "") -> Iterator[str]:
    for in_flight in sorted({place[0] for place in results.runs}):
        hot, fifty = (results.median(in_flight, population.name, "rps") for population in (HOT, FIFTY))
        if hot == hot and fifty == fifty:
            text = f"throughput of one hot tenant to fifty tenants', {in_flight} in flight{beside}"
            yield target(text, hot / fifty, SHARE, "", at_least=True)
