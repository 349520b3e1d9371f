"""A desk of its own for each test, on tables that the writer's own connection can see."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections

from gateway.catalogue.models import Deployment, Model, Price, Provider
from gateway.catalogue.snapshot import load_catalogue
from gateway.identifiers import uuid7
from gateway.ledger.desk import Desk
from gateway.ledger.items import Order
from tenants.facts import load_callers
from tenants.models import APIKey, Tenant

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
async def close_the_threads_connection() -> AsyncIterator[None]:
    """Async tests read through asgiref's one thread, which would keep the test database from being dropped."""
    yield
    await sync_to_async(connections.close_all)()


@pytest.fixture
def acme(transactional_db: None) -> APIKey:
    tenant = Tenant.objects.create(slug="acme", name="Acme", timezone="Asia/Tokyo", allowed_models=["*"])
    return APIKey.objects.create(public_id="acmeacmeacme", tenant=tenant, name="laptop")


@pytest.fixture
def globex(acme: APIKey) -> APIKey:
    tenant = Tenant.objects.create(slug="globex", name="Globex", allowed_models=["*"])
    return APIKey.objects.create(public_id="globexglobex", tenant=tenant, name="neighbour")


@pytest.fixture
def chat_model(transactional_db: None) -> Model:
    provider = Provider.objects.create(name="acme-llm", protocol="echo")
    model = Model.objects.create(public_id="acme-chat")
    Deployment.objects.create(model=model, provider=provider, upstream_model="acme-chat-2026-01")
    for side, price in (("charge", 150_000_000), ("cost", 100_000_000)):
        Price.objects.create(
            model=model, side=side, currency="USD", input=price, output=4 * price, effective_from=NEW_YEAR
        )
    return model


@pytest.fixture
def order(acme: APIKey, chat_model: Model) -> Callable[..., Order]:
    def make(key: APIKey = acme, *, priced: bool = True) -> Order:
        catalogue = load_catalogue()
        facts = catalogue.by_name["acme-chat"]
        target = facts.deployments[0].target
        assert target is not None
        caller = load_callers([key.public_id])[key.public_id]
        now = datetime.now(UTC)
        return Order(
            request_id=uuid7(),
            caller=caller,
            catalogue_version=catalogue.version,
            endpoint="chat.completions",
            stream=False,
            model=facts.public_id,
            catalogue_model_id=facts.id,
            deployment_id=target.deployment_id,
            provider_id=target.provider_id,
            input_tokens=1000,
            output_tokens=2000,
            charge_rates=facts.charge_rates(caller.tenant_id, "USD", now) if priced else None,
            cost_rates=facts.cost_rates(target.provider_id, now) if priced else None,
        )

    return make


@pytest.fixture
def desk(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """It beats once, when it begins: a test that has it die must not see it come to life again. And it is patient:
    that a busy machine is slow is not what these tests are about, but for those that say so themselves."""
    monkeypatch.setattr("gateway.ledger.writer.BEAT_SECONDS", 3600.0)
    for patience in ("desk.ADMISSION_SECONDS", "writer.PARKED_PATIENCE_SECONDS", "writer.STUCK_SECONDS"):
        monkeypatch.setattr(f"gateway.ledger.{patience}", 60.0)
    connection.close()
    desk = Desk()
    yield desk
    desk.stop(5)
