"""The metrics as text: Prometheus' own format, or OpenMetrics if the scraper asks for it."""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.telemetry import processes
from gateway.telemetry.families import FAMILIES, Family
from gateway.telemetry.gathering import Series, gather

if TYPE_CHECKING:
    from prometheus_client import Metric


@dataclass(frozen=True)
class Page:
    content_type: str
    body: bytes
    gzipped: bool = False


def page(accept: str = "", encodings: str = "", folder: Path | None = None) -> Page:
    """What there is at this moment; `accept` and `encodings` are the request's headers."""
    from prometheus_client.exposition import choose_encoder  # here: it takes 0.1 s, and most processes never need it

    gathered = gather(folder)
    encode, content_type = choose_encoder(accept)
    body = encode(Collected(gathered.series | processes.series(gathered.pids)))
    if "gzip" in encodings.lower():
        return Page(content_type, gzip.compress(body, 5), gzipped=True)
    return Page(content_type, body)


class Collected:
    """prometheus_client's Collector: what was gathered, family by family."""

    def __init__(self, series: Series) -> None:
        self._of: defaultdict[str, list[tuple[tuple[str, ...], list[float]]]] = defaultdict(list)
        for (name, labels), numbers in sorted(series.items()):
            self._of[name].append((labels, numbers))

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES.values():
            rows = self._of[family.name]
            if not rows and not family.labels:
                rows = [((), [0.0] * family.size)]  # 0 from the start: else the first increase is never seen
            yield _metric(family, rows)


def _metric(family: Family, rows: list[tuple[tuple[str, ...], list[float]]]) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.utils import floatToGoString

    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        edges = [*map(floatToGoString, family.bounds), "+Inf"]
        for labels, numbers in rows:
            buckets = list(zip(edges, accumulate(numbers[:-1]), strict=True))
            histogram.add_metric(labels, buckets=buckets, sum_value=numbers[-1])
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    plain = kind(family.name, family.help, labels=family.labels)
    for labels, numbers in rows:
        plain.add_metric(labels, numbers[0] / family.scale)
    return plain
