"""Reading a page of metrics as Prometheus does."""

from __future__ import annotations

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families


def parsed(text: str) -> dict[str, Metric]:
    """By name; raises if Prometheus could not read it."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(text: str, name: str, **labels: str) -> float | None:
    """The sample with exactly these labels; `name` as it is on the page."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None
