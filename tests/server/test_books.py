"""A drain with the real pipeline behind it: what could end has ended, what could not is booked as interrupted."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta

import pytest
from django.utils import timezone

from gateway.catalogue.models import Deployment, Model, Price, Provider
from gateway.ledger.models import Hold, UsageRecord
from tenants import services
from tenants.models import Tenant
from tests.server.conftest import until
from tests.server.raw import CHAT, Connection
from tests.servers import RunningServer, running_server
from tests.upstream import Upstream

pytestmark = pytest.mark.django_db(transaction=True)
MODELS = {"quick": "words-100-every-10", "endless": "stall-3"}


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def secret(upstream: Upstream) -> str:
    provider = Provider.objects.create(name="scripted", protocol="openai", base_url=upstream.url)
    for public_id, script in MODELS.items():
        model = Model.objects.create(public_id=public_id)
        Deployment.objects.create(model=model, provider=provider, upstream_model=script)
        yesterday = timezone.now() - timedelta(days=1)
        Price.objects.create(model=model, currency="USD", input=1, output=1, effective_from=yesterday)
    tenant = Tenant.objects.create(slug="acme", name="Acme", allowed_models=["*"])
    return services.issue_key(tenant=tenant, name="laptop")[1]


def ask_for(connection: Connection, model: str, secret: str) -> None:
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    connection.request("POST", CHAT, body, Authorization=f"Bearer {secret}")
    head = connection.head()
    assert head.status == 200, connection.buffer


def test_a_drain_loses_nothing_of_the_books(secret: str, upstream: Upstream) -> None:
    with running_server({"DRAIN_SECONDS": "60"}) as server, ExitStack() as stack:
        streams = {name: [stack.enter_context(Connection(server)) for _ in range(5)] for name in MODELS}
        for name, connections in streams.items():
            for connection in connections:
                ask_for(connection, name, secret)
        server.process.send_signal(signal.SIGTERM)
        for connection in streams["quick"]:
            assert drained(connection)[-1] == b"data: [DONE]\n\n"
        server.process.send_signal(signal.SIGTERM)  # the time is up
        for connection in streams["endless"]:
            chunks = drained(connection, whole=False)
            assert b'"error"' in chunks[-1]
            assert b"[DONE]" not in b"".join(chunks)
        assert server.process.wait(90) == 0
        assert_booked(server)
    until(lambda: Counter(served.outcome for served in upstream.served) == {"whole": 5, "gone": 5})


def drained(connection: Connection, *, whole: bool = True) -> list[bytes]:
    chunks = []
    while chunk := connection.chunk():
        chunks.append(chunk)
    assert (chunk == b"") is whole
    return chunks


def assert_booked(server: RunningServer) -> None:
    records = Counter(UsageRecord.objects.values_list("model", "status", "estimated"))
    assert records == {("quick", "completed", False): 5, ("endless", "interrupted", True): 5}
    assert not Hold.objects.exists()
    ids = {f"req_{pk.hex}" for pk in UsageRecord.objects.values_list("request_id", flat=True)}
    assert ids == {line["request_id"] for line in server.request_lines() if line["method"] == "POST"}
    assert not [line for line in server.lines() if line["level"] == "error"]
