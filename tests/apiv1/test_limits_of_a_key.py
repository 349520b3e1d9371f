"""GET /v1/limits and its explanations: a key's own, true to the books, and nothing of a neighbour's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.test import AsyncClient

from gateway.catalogue.models import Model
from gateway.limits.models import LimitCounter, LimitRule, Plan, PlanMembership
from tenants import services
from tenants.models import APIKey, Tenant

CHAT, LIMITS = "/v1/chat/completions", "/v1/limits"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 20}


@pytest.fixture
def neighbour(globex: Tenant) -> dict[str, str]:
    """globex's headers."""
    return {"authorization": f"Bearer {services.issue_key(tenant=globex, name='theirs')[1]}"}


def made(**fields: Any) -> Any:
    return sync_to_async(LimitRule.objects.create)(**fields)


async def listed(client: AsyncClient, headers: dict[str, str]) -> list[dict[str, Any]]:
    response = await client.get(LIMITS, headers=headers)
    assert response.status_code == 200
    body = response.json()
    assert (body["object"], body["has_more"]) == ("list", False)
    data: list[dict[str, Any]] = body["data"]
    assert (body["first_id"], body["last_id"]) == ((data[0]["id"], data[-1]["id"]) if data else (None, None))
    return data


async def chat(client: AsyncClient, headers: dict[str, str], model: str = "acme-chat") -> Any:
    return await client.post(CHAT, {**HELLO, "model": model}, content_type="application/json", headers=headers)


async def test_it_lists_what_is_used_and_what_is_left(
    client: AsyncClient, models: dict[str, Model], acme: Tenant, key: APIKey, bearer: dict[str, str]
) -> None:
    await made(tenant=acme, metric="requests", per="minute", amount=60)
    await made(key=key, metric="in_flight", per="", amount=3)
    await made(tenant=acme, metric="spend", per="month", currency="USD", amount=5 * 10**9, hold="hard")
    assert (await chat(client, bearer)).status_code == 200
    requests, flight, spend = await listed(client, bearer)
    assert (requests["metric"], requests["per"], requests["scope"]) == ("requests", "minute", "tenant")
    assert (requests["amount"], requests["used"], requests["held"], requests["remaining"]) == (60, 1, 0, 59)
    now = datetime.now(UTC).timestamp()
    assert now < requests["resets_at"] <= now + 62
    assert (flight["scope"], flight["per"], flight["resets_at"], flight["remaining"]) == ("key", None, None, 3)
    assert (spend["amount"], spend["currency"], spend["hold"], spend["mode"]) == ("5.00", "USD", "hard", "enforce")
    counter = await sync_to_async(LimitCounter.objects.get)(rule_id=int(spend["id"].removeprefix("limit_")))
    assert 0 < counter.used == 5 * 10**9 - round(float(spend["remaining"]) * 10**9)
    assert datetime.fromtimestamp(spend["resets_at"], UTC).day == 1


async def test_a_window_that_no_request_has_met_is_worked_out_of_the_ledger(
    client: AsyncClient, models: dict[str, Model], acme: Tenant, bearer: dict[str, str]
) -> None:
    await chat(client, bearer)
    await made(tenant=acme, metric="requests", per="day", amount=10)
    (limit,) = await listed(client, bearer)
    assert (limit["used"], limit["remaining"]) == (1, 9)
    assert not await sync_to_async(LimitCounter.objects.exists)()


async def test_a_key_sees_only_what_watches_it(
    client: AsyncClient,
    models: dict[str, Model],
    acme: Tenant,
    globex: Tenant,
    bearer: dict[str, str],
    neighbour: dict[str, str],
) -> None:
    other, _ = await sync_to_async(services.issue_key)(tenant=acme, name="another")
    plan = await sync_to_async(Plan.objects.create)(slug="basic", name="Basic")
    await sync_to_async(PlanMembership.objects.create)(tenant=acme, plan=plan)
    mine = [
        await made(plan=plan, metric="requests", per="day", amount=100),
        await made(tenant=acme, model=models["acme-chat"], metric="requests", per="minute", amount=5),
        await made(model=models["acme-chat"], metric="requests", per="minute", amount=50),
    ]
    await made(key=other, metric="requests", per="day", amount=7)
    await made(tenant=globex, metric="requests", per="day", amount=7)
    await made(model=models["globex-chat"], metric="requests", per="minute", amount=7)
    await made(tenant=acme, model=models["globex-chat"], metric="requests", per="day", amount=7)
    await made(model=models["acme-chat"], metric="spend", per="day", currency="EUR", amount=7)
    for _ in range(3):
        assert (await chat(client, neighbour)).status_code == 200
    data = await listed(client, bearer)
    assert [limit["id"] for limit in data] == [f"limit_{rule.pk}" for rule in mine]
    assert [(limit["scope"], limit["model"]) for limit in data] == [
        ("plan", None),
        ("tenant", "acme-chat"),
        ("model", "acme-chat"),
    ]
    assert [limit["used"] for limit in data] == [0, 0, None]  # what globex used is not told
    assert (data[2]["amount"], data[2]["remaining"], data[2]["held"]) == (50, None, None)


async def test_answers_that_are_no_requests_say_what_is_left(
    client: AsyncClient, models: dict[str, Model], acme: Tenant, bearer: dict[str, str]
) -> None:
    await made(tenant=acme, metric="requests", per="minute", amount=5)
    response = await chat(client, bearer)
    for path in ("/v1/models", "/v1/models/acme-chat", "/v1/usage", LIMITS):
        response = await client.get(path, headers=bearer)
        assert response.status_code == 200
        assert response["x-ratelimit-limit-requests"] == "5"
        assert response["x-ratelimit-remaining-requests"] == "4", path
        assert response["x-ratelimit-reset-requests"].endswith("s")


async def test_a_change_is_seen_at_once(
    client: AsyncClient, models: dict[str, Model], acme: Tenant, bearer: dict[str, str]
) -> None:
    rule = await made(tenant=acme, metric="requests", per="day", amount=5)
    assert [limit["amount"] for limit in await listed(client, bearer)] == [5]
    await sync_to_async(LimitRule.objects.filter(pk=rule.pk).update)(amount=9)
    assert [limit["amount"] for limit in await listed(client, bearer)] == [9]
    await sync_to_async(LimitRule.objects.filter(pk=rule.pk).delete)()
    assert await listed(client, bearer) == []


async def test_a_tenant_is_told_why(
    client: AsyncClient, models: dict[str, Model], acme: Tenant, bearer: dict[str, str], neighbour: dict[str, str]
) -> None:
    await made(tenant=acme, metric="requests", per="day", amount=1)
    admitted, refused = await chat(client, bearer), await chat(client, bearer)
    assert (admitted.status_code, refused.status_code) == (200, 429)
    for response, verdict, used in ((admitted, "admitted", 0), (refused, "refused", 1)):
        path = f"{LIMITS}/explain/{response['x-request-id']}"
        said = (await client.get(path, headers=bearer)).json()
        assert said["verdict"] == verdict
        (step,) = said["limits"]
        assert (step["amount"], step["used"] + step["held"], step["asked"]) == (1, used, 1)
        assert (await client.get(path, headers=neighbour)).status_code == 404


@pytest.mark.parametrize("name", ["req_" + "0" * 32, "nonsense", "\x07"])
async def test_an_unknown_request_is_not_found(
    client: AsyncClient, acme: Tenant, bearer: dict[str, str], name: str
) -> None:
    response = await client.get(f"{LIMITS}/explain/{name}", headers=bearer)
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "invalid_request_error"
