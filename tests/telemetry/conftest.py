from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry import exposition, gathering, labels, metrics, slots

Read = Callable[..., float | None]


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


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[slots.Slots]:
    """Numbers of a process that has just started, here in this one."""
    mine = slots.Slots()
    for module in (slots, metrics, gathering):
        monkeypatch.setattr(module, "slots", mine)
    monkeypatch.setattr(metrics, "_models", {})
    monkeypatch.setattr(metrics, "_single", {})
    for name in ("models", "deployments", "providers", "outcomes", "codes", "currencies", "endpoints"):
        monkeypatch.setattr(getattr(labels, name), "_known", set())
    yield mine


@pytest.fixture
def read(fresh: slots.Slots) -> Read:
    """A sample of the page as it is now."""

    def of(name: str, **labels: Any) -> float | None:
        return value(exposition.page().body.decode(), name, **labels)

    return of
