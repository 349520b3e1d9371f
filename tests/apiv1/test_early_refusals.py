"""Requests that were refused before any counter was looked at can be explained, too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.test import AsyncClient

from gateway.catalogue.models import Deployment, Model, Price
from gateway.ledger.models import Hold, UsageRecord
from gateway.limits import refusals_log
from gateway.limits.models import LimitRule
from gateway.limits.refusals_log import PER_SECOND, Refusal
from tenants import services
from tenants.models import APIKey, Tenant

CHAT, EXPLAIN = "/v1/chat/completions", "/v1/limits/explain/"
HELLO: dict[str, Any] = {
    "model": "acme-chat",
    "messages": [{"role": "user", "content": "Hello there"}],
    "max_tokens": 20,
}
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]


@pytest.fixture
def neighbour(globex: Tenant) -> dict[str, str]:
    """globex's headers."""
    return {"authorization": f"Bearer {services.issue_key(tenant=globex, name='theirs')[1]}"}


@pytest.fixture
def ask(client: AsyncClient, models: dict[str, Model], bearer: dict[str, str]) -> Any:
    async def ask(status: int, **changes: Any) -> str:
        """The refused request's id."""
        response = await client.post(CHAT, {**HELLO, **changes}, content_type="application/json", headers=bearer)
        assert response.status_code == status, response.content
        return str(response["x-request-id"])

    return ask


@pytest.fixture
def told(client: AsyncClient, bearer: dict[str, str], neighbour: dict[str, str]) -> Any:
    async def told(request_id: str) -> dict[str, Any]:
        """Its explanation, which the neighbour does not get."""
        assert (await client.get(EXPLAIN + request_id, headers=neighbour)).status_code == 404
        response = await client.get(EXPLAIN + request_id, headers=bearer)
        assert response.status_code == 200, response.content
        said: dict[str, Any] = response.json()
        assert (said["verdict"], said["status"]) == ("refused", "refused")
        return said

    return told


def limit(**fields: Any) -> Any:
    return sync_to_async(LimitRule.objects.create)(**fields)


async def test_a_hard_limit_tells_which_bound_it_missed(ask: Any, told: Any, acme: Tenant, settings: Any) -> None:
    await limit(tenant=acme, metric="requests", per="day", amount=10)
    await limit(tenant=acme, metric="tokens", per="day", amount=10**6, hold="hard")
    settings.MAX_TOKENS = 0
    for request_id, reason, why in (
        (await ask(400, messages=IMAGE), "unbounded_input", "it has parts whose tokens cannot be bounded beforehand"),
        (await ask(400, max_tokens=None), "unbounded_output", "its output has no bound"),
    ):
        said = await told(request_id)
        assert said["reason"] == reason
        assert said["summary"] == f"Refused: tokens per day of acme cannot be sure of the request: {why}."
        (step,) = said["limits"]
        assert (step["limit"], step["amount"], step["verdict"]) == ("tokens per day of tenant", 10**6, "refused")
        assert (step["asked"], step["used"], step["held"]) == (None, None, None)
        assert step["explanation"] == f"It cannot be sure of the request: {why}."
        assert step["window_start"] < step["window_end"]
        assert said["input_tokens"] > 0


async def test_a_spend_limit_tells_that_there_is_no_price(
    ask: Any, told: Any, key: APIKey, models: dict[str, Model]
) -> None:
    await limit(key=key, metric="spend", per="month", currency="USD", amount=10**9)
    await sync_to_async(Price.objects.all().delete)()
    await sync_to_async(Model.objects.update)(refuse_unpriced=False)
    said = await told(await ask(403, model="acme-latest"))
    assert (said["reason"], said["model"], said["limits"][0]["scope"]) == ("no_price", "acme-chat", "key")
    assert said["summary"].endswith("cannot be sure of the request: it has no price.")


async def test_refusals_beside_limits_say_what_stood_in_the_way(
    ask: Any, told: Any, models: dict[str, Model]
) -> None:
    odd = "globex-chat\x00\n" + "x" * 230
    for request_id, reason, model in (
        (await ask(404, model="globex-chat"), "model_not_found", "globex-chat"),
        (await ask(404, model=odd), "model_not_found", ("globex-chat  " + "x" * 230)[:200]),
    ):
        said = await told(request_id)
        assert (said["reason"], said["model"], said["limits"]) == (reason, model, [])
        assert said["summary"].startswith("Refused before limits were looked at: there is no such model")


async def test_a_price_a_cap_and_a_deployment_that_are_missing_are_told(
    ask: Any, told: Any, models: dict[str, Model]
) -> None:
    await sync_to_async(Model.objects.update)(max_output_tokens=10)
    assert (await told(await ask(400)))["reason"] == "invalid_value"
    await sync_to_async(Price.objects.all().delete)()
    assert (await told(await ask(403, max_tokens=5)))["reason"] == "model_not_priced"
    await sync_to_async(Deployment.objects.all().delete)()
    said = await told(await ask(503, max_tokens=5))
    assert said["reason"] == "unavailable"
    assert "no deployment that could serve it" in said["summary"]


async def test_a_flood_is_kept_in_part_and_holds_nothing(
    ask: Any, models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals_log, "time", SimpleNamespace(monotonic=lambda: 100.5))  # all in one second
    for _ in range(12):
        await ask(404, model="nothing")
    assert 0 < await sync_to_async(Refusal.objects.count)() <= PER_SECOND
    assert not await sync_to_async(Hold.objects.exists)()
    assert not await sync_to_async(UsageRecord.objects.exists)()


async def test_what_is_not_kept_says_why_it_may_not_be(client: AsyncClient, ask: Any, bearer: dict[str, str]) -> None:
    request_id = await ask(400, temperature="hot")
    response = await client.get(EXPLAIN + request_id, headers=bearer)
    message = response.json()["error"]["message"]
    assert response.status_code == 404
    assert message.startswith(f"No decision on a request '{request_id}' was found. A request that was refused for")
