"""A small cast and ledger rows for tests of sums and exports, written with plain SQL as the desk does.

`local_date` is worked out from `started_at` in the tenant's zone, as admission does in the database.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connection

from tenants.models import APIKey, Tenant

NOON = datetime(2026, 11, 10, 12, tzinfo=UTC)
RECORD_DEFAULTS: dict[str, Any] = {
    "model": "acme-chat",
    "charge_currency": "USD",
    "cost_currency": "USD",
    "process_id": uuid.UUID(int=1),
    "catalogue_model_id": 1,
    "deployment_id": 1,
    "provider_id": 1,
    "endpoint": "chat.completions",
    "stream": False,
    "status": "completed",
    "estimated": False,
    "http_status": 200,
    "error_code": "",
    "input_tokens": 1000,
    "cached_input_tokens": 200,
    "cache_write_tokens": 0,
    "output_tokens": 500,
    "reasoning_tokens": 50,
    "charge": 495_000,
    "cost": 300_000,
    "lines": "[]",
    "client_request_id": "",
    "end_user": "",
}


def uuid7(at: datetime) -> uuid.UUID:
    """As the pipeline's: 48 bits of milliseconds, version 7, random."""
    bits = int.from_bytes(os.urandom(10), "big") & ~(0xF << 76) & ~(0x3 << 62)
    return uuid.UUID(int=(int(at.timestamp() * 1000) << 80) | (7 << 76) | bits | (2 << 62))


def tenant(slug: str, **fields: Any) -> Tenant:
    return Tenant.objects.create(slug=slug, name=slug.title(), **{"allowed_models": ["*"], **fields})


def key(owner: Tenant, name: str = "laptop") -> APIKey:
    public_id = (owner.slug + name + "x" * 12)[:8] + uuid.uuid4().hex[:4]
    return APIKey.objects.create(public_id=public_id, tenant=owner, name=name)


def record(owner: APIKey, started_at: datetime = NOON, **fields: Any) -> uuid.UUID:
    """Insert one usage record; returns its request id."""
    row = {
        **RECORD_DEFAULTS,
        "request_id": uuid7(started_at),
        "tenant_id": owner.tenant_id,
        "key_id": owner.pk,
        "started_at": started_at,
        "local_date": started_at.astimezone(owner.tenant.zone).date(),
        "ended_at": started_at,
        **fields,
    }
    _insert("ledger_usagerecord", row)
    return uuid.UUID(str(row["request_id"]))


def attempt(owner: APIKey, request_id: uuid.UUID, number: int, started_at: datetime = NOON, **fields: Any) -> None:
    """Insert one attempt, which took a tenth of a second."""
    row = {
        "request_id": request_id,
        "number": number,
        "tenant_id": owner.tenant_id,
        "model": "acme-chat",
        "deployment_id": 1,
        "provider_id": 1,
        "started_at": started_at,
        "ended_at": started_at + timedelta(milliseconds=100),
        "outcome": "connect",
        "http_status": 0,
        "served": False,
        **dict.fromkeys(
            (f"{name}_tokens" for name in ("input", "cached_input", "cache_write", "output", "reasoning")), 0
        ),
        "estimated": False,
        "cost": 0,
        "cost_currency": "USD",
        **fields,
    }
    _insert("ledger_attempt", row)


def adjustment(owner: APIKey, request_id: uuid.UUID, started_at: datetime = NOON, **fields: Any) -> uuid.UUID:
    row = {
        "id": uuid.uuid4(),
        "request_id": request_id,
        "kind": "correction",
        "tenant_id": owner.tenant_id,
        "key_id": owner.pk,
        "model": "acme-chat",
        "started_at": started_at,
        "local_date": started_at.astimezone(owner.tenant.zone).date(),
        "charge_currency": "USD",
        "cost_currency": "USD",
        **dict.fromkeys(
            [
                "input_tokens",
                "cached_input_tokens",
                "cache_write_tokens",
                "output_tokens",
                "reasoning_tokens",
            ],
            0,
        ),
        "charge": 0,
        "cost": 0,
        "lines": "[]",
        "reason": "test",
        "created_at": datetime.now(UTC),
        **fields,
    }
    _insert("ledger_adjustment", row)
    return uuid.UUID(str(row["id"]))


def _insert(table: str, row: dict[str, Any]) -> None:
    names = ", ".join(row)
    marks = ", ".join(["%s"] * len(row))
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(row.values()))


def totals(table: str = "facts") -> dict[str, int]:
    """Every measure over everything: of the ledger itself, or of `billing_usagehour`."""
    from gateway.billing.facts import MEASURES, facts_of, sums

    source = f"({facts_of('true')}) AS facts" if table == "facts" else table
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {sums()} FROM {source}")
        row: Iterable[Any] = cursor.fetchone()
    return {name: int(value or 0) for name, value in zip(MEASURES, row, strict=True)}


def settle_rollups(deadline_s: float = 30.0) -> None:
    """Roll up until the hourly sums have all of it: other transactions of the cluster may hold it back."""
    from gateway.billing.rollups import roll_up

    end = time.monotonic() + deadline_s
    while True:
        roll_up()
        if totals() == totals("billing_usagehour"):
            return
        assert time.monotonic() < end, (totals(), totals("billing_usagehour"))
        time.sleep(0.05)
