from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings

from gateway.embedded import engines, layout
from gateway.telemetry import exposition, gathering, labels, metrics, slots
from tests.house import House
from tests.servers import free_port, running_server
from tests.telemetry.collector import Collector
from tests.telemetry.samples import value
from tests.telemetry.watched import CATALOGUE, TOKEN, Watched
from tests.upstream import Upstream

Read = Callable[..., float | None]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[slots.Slots]:
    """Numbers of a process that has just started, here in this one."""
    mine = slots.Slots()
    for module in (slots, metrics, gathering):
        monkeypatch.setattr(module, "slots", mine)
    for places in ("_models", "_single", "_attempts"):
        monkeypatch.setattr(metrics, places, {})
    for name in ("models", "deployments", "providers", "outcomes", "codes", "currencies", "endpoints"):
        monkeypatch.setattr(getattr(labels, name), "_known", set())
    yield mine


@pytest.fixture
def read(fresh: slots.Slots) -> Read:
    """A sample of the page as it is now."""

    def of(name: str, **labels: Any) -> float | None:
        return value(exposition.page().body.decode(), name, **labels)

    return of


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    engines.ensure(settings.COUNTERFOIL_HOME)
    sockets = layout.sockets(settings.COUNTERFOIL_HOME)
    house = House(tmp_path_factory.mktemp("house"), sockets, f"watched_{os.getpid()}", {"WATCHED_KEY": "sk-provider"})
    house.create()
    yield house
    house.drop()


@pytest.fixture(scope="session")
def open_watched(house: House) -> Iterator[Watched]:
    port = free_port()
    with Upstream() as upstream, Collector() as collector:
        house.apply(CATALOGUE.replace("URL", upstream.url))
        secret = house.manage("issue_key", "--tenant", "acme", "--name", "laptop").strip()
        watching = {
            "METRICS_TOKEN": TOKEN,
            "METRICS_PORT": str(port),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        with running_server(house.environment | watching) as server:
            yield Watched(server, secret, upstream, collector, house, port)


@pytest.fixture
def watched(open_watched: Watched) -> Watched:
    open_watched.upstream.reset()
    return open_watched
