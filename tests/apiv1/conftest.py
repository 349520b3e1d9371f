"""The wire in one process: Django's async client, the real key ring, desk and database, an echo model."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from asgiref.sync import SyncToAsync
from django.db import connection, connections
from django.test import AsyncClient

from apiv1 import auth, keyring
from apiv1.error_rates import error_rates
from apiv1.strangers import strangers
from gateway import snapshots
from gateway.catalogue.models import Deployment, Model, Price, Provider
from gateway.ledger import desk
from tenants import services
from tenants.models import APIKey, Tenant


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> keyring.KeyRing:
    """A key ring that knows nothing yet, in the place of the process's."""
    fresh = keyring.KeyRing()
    monkeypatch.setattr(keyring, "ring", fresh)
    monkeypatch.setattr(auth, "ring", fresh)
    monkeypatch.setattr(snapshots, "listeners", [snapshots._reload_model_rules, fresh.refresh_imported])
    return fresh


@pytest.fixture
def visitor(settings: Any) -> AsyncClient:
    """Somebody without a key, whom no database is needed to answer."""
    settings.MIDDLEWARE = ["gateway.server.middleware.boundary"]
    strangers.forget()
    return AsyncClient()


@pytest.fixture
def house(transactional_db: None, ring: keyring.KeyRing) -> Iterator[None]:
    """Desk and snapshots on the test's database, and nothing left of them afterwards."""
    snapshots.forget()
    error_rates.forget()
    yield
    desk.stop()
    snapshots.forget()
    for threads in (snapshots._reader, SyncToAsync.single_thread_executor):
        threads.submit(connections.close_all).result()
    connection.close()


@pytest.fixture
def acme(house: None) -> Tenant:
    return Tenant.objects.create(slug="acme", name="Acme", allowed_models=["acme*"])


@pytest.fixture
def globex(house: None) -> Tenant:
    return Tenant.objects.create(slug="globex", name="Globex", allowed_models=["*"])


@pytest.fixture
def issued(acme: Tenant) -> tuple[APIKey, str]:
    return services.issue_key(tenant=acme, name="laptop")


@pytest.fixture
def key(issued: tuple[APIKey, str]) -> APIKey:
    return issued[0]


@pytest.fixture
def secret(issued: tuple[APIKey, str]) -> str:
    return issued[1]


@pytest.fixture
def models(house: None) -> dict[str, Model]:
    """Two of acme's, one with `/` and `:` in its id, and one that only globex may call."""
    provider = Provider.objects.create(name="echo", protocol="echo")
    made = {}
    for public_id, aliases in (("acme-chat", ["acme-latest"]), ("acme/chat:7b", []), ("globex-chat", [])):
        model = made[public_id] = Model.objects.create(public_id=public_id, aliases=aliases, owned_by="acme-llm")
        Deployment.objects.create(model=model, provider=provider, upstream_model="echo")
        Price.objects.create(
            model=model, currency="USD", input=10**9, output=10**9, effective_from=datetime(2026, 1, 1, tzinfo=UTC)
        )
    return made


@pytest.fixture
def client(house: None, visitor: AsyncClient) -> AsyncClient:
    return visitor


@pytest.fixture
def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}
