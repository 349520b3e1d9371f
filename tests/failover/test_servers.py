"""Two real servers and a provider that fails: what one finds out keeps the other from calling it, too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import requests
from django.contrib.auth.models import User
from django.utils import timezone

from gateway.catalogue.apply import apply
from gateway.catalogue.models import Deployment
from gateway.failover import services
from gateway.failover.models import Circuit, HealthEvent
from gateway.ledger.models import Hold
from tenants.models import Tenant
from tenants.services import issue_key
from tests.servers import RunningServer, running_server
from tests.upstream import Upstream
from tests.upstream_scripts import Answer, error

pytestmark = pytest.mark.django_db(transaction=True)
PATIENCE_S = 60.0
CATALOGUE = """
providers: [{{name: llm, base_url: "{url}"}}]
models:
  - id: acme-chat
    max_attempts: 1
    deployments: [{{provider: llm, upstream_model: theirs}}]
    prices: [{{effective_from: 2026-01-01, currency: USD, input: "0.15", output: "0.60"}}]
tenants: [{{slug: acme, name: Acme, models: ["acme-*"]}}]
"""


def until(holds: Callable[[], Any]) -> None:
    by = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < by, "it did not come to pass"
        time.sleep(0.02)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def secret(db: None, upstream: Upstream) -> str:
    apply(CATALOGUE.format(url=upstream.url))
    acme = Tenant.objects.get()
    return issue_key(tenant=acme, name="shop", expires_at=None, allowed_models=["*"], created_by=None)[1]


@pytest.fixture
def servers(secret: str) -> Iterator[list[RunningServer]]:
    with running_server() as one, running_server() as two:
        yield [one, two]


def ask(server: RunningServer, secret: str) -> requests.Response:
    return requests.post(
        f"{server}/v1/chat/completions",
        headers={"Authorization": f"Bearer {secret}"},
        json={"model": "acme-chat", "messages": [{"role": "user", "content": "hello"}]},
        timeout=60,
    )


def test_it_is_open_for_both_and_one_probe_closes_it_for_both(
    servers: list[RunningServer], upstream: Upstream, secret: str
) -> None:
    one, two = servers
    assert [ask(server, secret).status_code for server in servers] == [200, 200]
    upstream.script("theirs", error(500))
    for _ in range(5):
        assert ask(one, secret).status_code >= 500
    until(lambda: Circuit.objects.filter(state="open").exists())
    Circuit.objects.update(open_until=timezone.now() + timedelta(minutes=1))  # time enough to look at it
    until(lambda: ask(two, secret).status_code == 503)
    called = len(upstream.served)
    refused = ask(two, secret)
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
    assert len(upstream.served) == called

    upstream.script("theirs", Answer())
    Circuit.objects.update(open_until=timezone.now() - timedelta(seconds=1))
    until(lambda: ask(two, secret).status_code == 200)
    until(lambda: ask(one, secret).status_code == 200)
    assert [event.after for event in HealthEvent.objects.order_by("id")] == ["open", "closed"]
    until(lambda: not Hold.objects.exists())


def test_both_obey_an_administrator(
    servers: list[RunningServer], upstream: Upstream, secret: str, admin: User
) -> None:
    deployment = Deployment.objects.get()
    services.take_out(deployment=deployment, by=admin, reason="maintenance")
    for server in servers:
        until(lambda server=server: ask(server, secret).status_code == 503)
    services.put_back(deployment=deployment, by=admin)
    for server in servers:
        until(lambda server=server: ask(server, secret).status_code == 200)
