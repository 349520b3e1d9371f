"""The figures as tables for people: medians over the rounds, and ratios to the direct call."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator

from benchmarks.cast import FIFTY, HOT, POPULATIONS
from benchmarks.programs import Figures
from benchmarks.runs import DIRECT, OURS, Results
from benchmarks.scenarios import COMMIT_DELAY, LIMITED, MAIN, ONE, PACED, SATURATION, SIXTEEN, SIXTY_FOUR, Scenario
from benchmarks.tables import Row, table, target


def median(runs: list[Figures], name: str, inner: str = "") -> float:
    values = [run[name][inner] if inner else run[name] for run in runs]
    return statistics.median(values) if values else float("nan")


def ratio(value: float, base: float, places: int = 0) -> str:
    return f"{value / base:.{places}f}" if base else "-"


def ms(runs: list[Figures], name: str) -> float:
    return median(runs, name) / 1000


def lines(results: Results) -> Iterator[str]:
    yield from whole_answers(results)
    yield from streams(results)
    yield from slow(results)
    yield from saturated(results)
    yield from limited(results)


def whole_answers(results: Results) -> Iterator[str]:
    head = [
        "",
        "req/s",
        "server ms/req",
        "PostgreSQL",
        "p50 ms",
        "p99 ms",
        "added p50",
        "added p99",
        "direct p50",
        "x p50",
        "x p99",
        "x CPU",
    ]
    rows = []
    for scenario in MAIN:
        if scenario.streaming:
            continue
        ours, direct = (results.of("main", scenario.name, target) for target in (OURS, DIRECT))
        cpu = [median(ours, tree, "ms_req") for tree in ("server", "postgres", "mock")]
        p50, p99, d50, d99 = ms(ours, "p50"), ms(ours, "p99"), ms(direct, "p50"), ms(direct, "p99")
        rows.append(
            [
                scenario.title,
                f"{median(ours, 'rps'):.0f}",
                f"{cpu[0]:.3f}",
                f"{cpu[1]:.3f}",
                f"{p50:.2f}",
                f"{p99:.2f}",
                f"{p50 - d50:+.2f}",
                f"{p99 - d99:+.2f}",
                f"{d50:.3f}",
                ratio(p50, d50),
                ratio(p99, d99),
                ratio(sum(cpu), median(direct, "mock", "ms_req")),
            ]
        )
    yield from table("Whole answers (CPU in ms per request; x: ratio to the direct call)", head, rows)


def streams(results: Results) -> Iterator[str]:
    head = [
        "",
        "chunks/s",
        "server us/chunk",
        "PostgreSQL",
        "first byte p50 ms",
        "p99",
        "added p50",
        "added p99",
        "gap p99",
        "added gap p99",
        "x CPU",
    ]
    rows = []
    for scenario in MAIN:
        if not scenario.streaming:
            continue
        ours, direct = (results.of("main", scenario.name, target) for target in (OURS, DIRECT))
        cpu = [median(ours, tree, "us_event") for tree in ("server", "postgres", "mock")]
        p50, p99 = ms(ours, "ttfb50"), ms(ours, "ttfb99")
        rows.append(
            [
                scenario.title,
                f"{median(ours, 'events_s'):.0f}",
                f"{cpu[0]:.1f}",
                f"{cpu[1]:.1f}",
                f"{p50:.2f}",
                f"{p99:.2f}",
                f"{p50 - ms(direct, 'ttfb50'):+.2f}",
                f"{p99 - ms(direct, 'ttfb99'):+.2f}",
                f"{ms(ours, 'gap99'):.2f}",
                f"{ms(ours, 'gap99') - ms(direct, 'gap99'):+.2f}",
                ratio(sum(cpu), median(direct, "mock", "us_event")),
            ]
        )
    yield from table("Streams (CPU in us per event that a client received)", head, rows)


def slow(results: Results) -> Iterator[str]:
    head = ["", "req/s", "server ms/req", "PostgreSQL", "p50 ms", "p99 ms", "x p50", "x p99"]
    rows = []
    for scenario in COMMIT_DELAY:
        late, usual = (results.of(part, scenario.name, OURS) for part in ("commit_delay", "main"))
        if late:
            rows.append(
                [
                    scenario.title,
                    f"{median(late, 'rps'):.0f}",
                    f"{median(late, 'server', 'ms_req'):.3f}",
                    f"{median(late, 'postgres', 'ms_req'):.3f}",
                    f"{ms(late, 'p50'):.2f}",
                    f"{ms(late, 'p99'):.2f}",
                    ratio(median(late, "p50"), median(usual, "p50"), 1),
                    ratio(median(late, "p99"), median(usual, "p99"), 1),
                ]
            )
    if rows:
        yield from table("The same with commit_delay = 5000 (x: ratio to without)", head, rows)


def saturated(results: Results) -> Iterator[str]:
    head = ["", "per s", "p50 ms", "p99 ms", "x p50", "x p99"]
    rows = []
    for title, name, place in (
        ("16 in flight, the same process", SIXTEEN.name, "same process"),
        ("1 in flight, an idle neighbour on the same counters", ONE.name, "its neighbour"),
    ):
        busy, usual = results.of("saturated", name, place), results.of("main", name, OURS)
        if busy:
            rows.append(
                [
                    title,
                    f"{median(busy, 'rps'):.0f} req",
                    f"{ms(busy, 'p50'):.2f}",
                    f"{ms(busy, 'p99'):.2f}",
                    ratio(median(busy, "p50"), median(usual, "p50"), 1),
                    ratio(median(busy, "p99"), median(usual, "p99"), 1),
                ]
            )
    load = results.of("saturated", SATURATION.name, "same process")
    if rows:
        rows.append(
            [
                f"meanwhile: {SATURATION.title}",
                f"{median(load, 'events_s'):.0f} chunks",
                f"{ms(load, 'ttfb50'):.2f}",
                f"{ms(load, 'ttfb99'):.2f}",
                "",
                "",
            ]
        )
        yield from table("Event loop saturated (x: ratio to the same load alone)", head, rows)


def limited(results: Results) -> Iterator[str]:
    head = ["", "req/s", "server ms/req", "PostgreSQL", "p50 ms", "p99 ms", "added p50", "added p99"]
    head += ["admission p50", "p99", "hot/fifty"]
    rows: list[Row] = []
    for scenario in LIMITED:
        direct = results.of("limits", scenario.name, DIRECT)
        for population in POPULATIONS:
            ours = results.of("limits", scenario.name, population.name)
            p50, p99 = ms(ours, "p50"), ms(ours, "p99")
            rows.append(
                [
                    f"{scenario.title}, {population.title}",
                    f"{median(ours, 'rps'):.0f}",
                    f"{median(ours, 'server', 'ms_req'):.3f}",
                    f"{median(ours, 'postgres', 'ms_req'):.3f}",
                    f"{p50:.2f}",
                    f"{p99:.2f}",
                    f"{p50 - ms(direct, 'p50'):+.2f}",
                    f"{p99 - ms(direct, 'p99'):+.2f}",
                    f"{ms(ours, 'admission50'):.2f}",
                    f"{ms(ours, 'admission99'):.2f}",
                    f"{hot_to_fifty(results, scenario):.2f}" if population == HOT else "",
                ]
            )
    yield from table("Limits: three a key and one that its tenant's keys share; two servers", head, rows)


def hot_to_fifty(results: Results, scenario: Scenario) -> float:
    """Throughput of one hot tenant, as a share of fifty tenants'."""
    hot, fifty = (median(results.of("limits", scenario.name, found.name), "rps") for found in (HOT, FIFTY))
    return hot / fifty


def targets(results: Results) -> Iterator[str]:
    alone, direct = (results.of("main", ONE.name, place) for place in (OURS, DIRECT))
    busy, streaming = (results.of("main", scenario.name, OURS) for scenario in (SIXTY_FOUR, PACED))
    hot = results.of("limits", SIXTY_FOUR.name, HOT.name)
    worst = min(LIMITED, key=lambda scenario: hot_to_fifty(results, scenario))
    yield "\nTargets (design.md 5; for limits issue 3)"
    yield target("CPU of the server, 64 in flight", median(busy, "server", "ms_req"), 0.4, "ms per request")
    yield target("CPU of the server, 64 paced streams", median(streaming, "server", "us_event"), 80, "us per chunk")
    yield target("added p50, 1 in flight", ms(alone, "p50") - ms(direct, "p50"), 6, "ms")
    yield target("p99 of admission, 64 in flight, two servers with limits", ms(hot, "admission99"), 15, "ms")
    text = f"throughput of one hot tenant to fifty tenants', two servers, {worst.title}, the worst"
    yield target(text, hot_to_fifty(results, worst), 0.7, "", at_least=True)


def noise(results: Results) -> str:
    runs = results.all()
    seconds = sum(run["secs"] for run in runs)
    yardstick = statistics.median(results.yardstick or [0.0])
    busy, steal = (sum(run[name] for run in runs) for name in ("machine_busy", "steal"))
    ours = sum(run["load_cpu"] for run in runs)
    ours += sum(part["cpu_s"] for run in runs for part in run.values() if isinstance(part, dict))
    return (
        f"noise: {busy / seconds:.2f} of {os.cpu_count()} cores busy, {max(0, busy - ours) / seconds:.2f} of them "
        f"with something else, steal {steal:.1f} s, yardstick {yardstick:.1f} ms (README.md); wall times move with "
        "the first, CPU times with the last"
    )
