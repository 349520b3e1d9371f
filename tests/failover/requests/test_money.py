"""What a request costs that was sent to several providers, or whose client left in between."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from gateway.catalogue.models import Deployment, Price
from gateway.failover.board import Board, State
from gateway.limits.models import LimitRule
from tenants.models import Tenant
from tests.failover.requests.test_attempts import Served, asked, books
from tests.upstream import Upstream
from tests.upstream_scripts import error


async def test_a_model_without_a_price_is_refused_under_a_spend_limit_whatever_its_fallbacks_cost(
    upstream: Upstream, served: Served, ask: Any, acme: Tenant
) -> None:
    for number, name in enumerate(("acme-small", "acme-tiny"), 1):
        await sync_to_async(served)(name, f"f{number}", price=number * 10**9)
    await sync_to_async(served)("acme-chat", "first", fallbacks=["acme-small", "acme-tiny"], refuse_unpriced=False)
    await Price.objects.filter(model__public_id="acme-chat").adelete()
    assert (await ask()).status_code == 200
    await LimitRule.objects.acreate(tenant=acme, metric="spend", per="month", currency="USD", amount=10**9)
    assert (await ask()).status_code == 403
    assert asked(upstream) == ["first"]


async def test_a_client_that_leaves_between_two_attempts_pays_nothing_at_all(
    upstream: Upstream, served: Served, ask: Any, nothing_known: Board
) -> None:
    await sync_to_async(served)("acme-small", "small")
    await sync_to_async(served)("acme-chat", "first", fallbacks=["acme-small"])
    places = [deployment.pk async for deployment in Deployment.objects.all()]
    await Price.objects.all().aupdate(request=10**15)
    for name in ("first", "small"):
        upstream.script(name, error(429, headers={"retry-after": "4"}))
    task = asyncio.create_task(ask())
    async with asyncio.timeout(60):  # both have been heard: it waits
        while any(nothing_known.state(place) is not State.RESTING for place in places):
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    record, attempts = await books()
    assert [attempt.outcome for attempt in attempts] == ["status_429", "status_429"]
    assert (record.status, record.charge, record.lines) == ("interrupted", 0, [])
    assert record.served_model == ""  # nobody did


async def test_a_request_that_failed_everywhere_was_served_by_nobody(
    upstream: Upstream, served: Served, ask: Any
) -> None:
    await sync_to_async(served)("acme-small", "small")
    await sync_to_async(served)("acme-chat", "first", fallbacks=["acme-small"], max_attempts=2)
    for name in ("first", "small"):
        upstream.script(name, error(500))
    assert (await ask()).status_code == 502
    record, attempts = await books()
    assert [attempt.model for attempt in attempts] == ["acme-chat", "acme-small"]
    assert (record.status, record.charge, record.served_model) == ("failed", 0, "")
