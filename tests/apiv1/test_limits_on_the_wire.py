"""What a client sees of limits: headers of every answer, refusals with their numbers, the cap that was left."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.test import AsyncClient

from gateway.catalogue.models import Model
from gateway.ledger.models import UsageRecord
from gateway.limits.models import LimitRule
from tenants.models import APIKey, Tenant

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {
    "model": "acme-chat",
    "messages": [{"role": "user", "content": "Hello there"}],
    "max_tokens": 20,
}


@pytest.fixture
def ask(client: AsyncClient, models: dict[str, Model], bearer: dict[str, str]) -> Any:
    async def ask(**changes: Any) -> Any:
        return await client.post(CHAT, {**HELLO, **changes}, content_type="application/json", headers=bearer)

    return ask


def limit(**fields: Any) -> Any:
    return sync_to_async(LimitRule.objects.create)(**fields)


def rates(response: Any) -> dict[str, str]:
    names = (name.lower() for name in response.headers)
    return {name.removeprefix("x-ratelimit-"): response[name] for name in names if name.startswith("x-ratelimit-")}


async def whole(response: Any) -> bytes:
    return b"".join([part async for part in response.streaming_content])


@pytest.mark.parametrize("stream", [False, True])
async def test_every_answer_says_what_is_left(ask: Any, acme: Tenant, key: APIKey, stream: bool) -> None:
    await limit(tenant=acme, metric="requests", per="minute", amount=5)
    await limit(key=key, metric="requests", per="day", amount=3)
    await limit(tenant=acme, metric="tokens", per="minute", amount=1000)
    await limit(tenant=acme, metric="tokens", per="day", amount=10, mode="observe")
    response = await ask(stream=stream)
    assert response.status_code == 200
    if stream:
        assert (await whole(response)).endswith(b"data: [DONE]\n\n")
    said = rates(response)
    assert (said["limit-requests"], said["remaining-requests"]) == ("3", "2")  # the day's is tighter
    assert said["limit-tokens"] == "1000"
    assert 900 < int(said["remaining-tokens"]) < 980
    assert all(
        re.fullmatch(r"(\d+h)?(\d+m)?(\d+(\.\d+)?s)?(\d+ms)?", said[f"reset-{kind}"])
        for kind in ("requests", "tokens")
    )


async def test_no_two_requests_at_once_see_the_same_remainder(ask: Any, acme: Tenant) -> None:
    await limit(tenant=acme, metric="requests", per="minute", amount=8)
    responses = await asyncio.gather(*(ask() for _ in range(12)))
    passed = [r for r in responses if r.status_code == 200]
    assert sorted(int(rates(r)["remaining-requests"]) for r in passed) == list(range(8))
    refused = [r for r in responses if r.status_code == 429]
    assert len(refused) == 4
    assert {rates(r)["remaining-requests"] for r in refused} == {"0"}


async def test_a_minutes_refusal_says_how_long_to_wait(ask: Any, acme: Tenant) -> None:
    await limit(tenant=acme, metric="requests", per="minute", amount=1)
    await ask()
    response = await ask()
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
    assert error["message"].startswith(
        "Rate limit reached for acme-chat in organization acme on requests per min (RPM): "
        "Limit 1, Used 1, Requested 1. Please try again in "
    )
    wait = int(response["retry-after-ms"])
    assert 0 < wait <= 61_000
    assert int(response["retry-after"]) == -(-wait // 1000)
    assert rates(response)["limit-requests"] == "1"
    assert "x-should-retry" not in response.headers


async def test_the_longest_wait_counts(ask: Any, acme: Tenant) -> None:
    noon = f"Etc/GMT{datetime.now(UTC).hour - 12:+d}"  # where it is about noon, far from the window's end
    await sync_to_async(Tenant.objects.filter(pk=acme.pk).update)(timezone=noon)
    await limit(tenant=acme, metric="requests", per="minute", amount=1)
    await limit(tenant=acme, metric="requests", per="day", amount=1)
    await ask()
    response = await ask()
    assert "requests per day (RPD): Limit 1, Used 1, Requested 1" in response.json()["error"]["message"]
    assert 3600 < int(response["retry-after"]) <= 24 * 3600
    assert response["x-should-retry"] == "false"  # an SDK must not sleep until midnight


async def test_a_request_larger_than_the_limit_says_so(ask: Any, acme: Tenant) -> None:
    await limit(tenant=acme, metric="tokens", per="minute", amount=5)
    response = await ask(max_tokens=500)  # its prompt alone does not fit; how long the answer will be is a guess
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (429, "tokens")
    assert error["message"].startswith(
        "Request too large for acme-chat in organization acme on tokens per min (TPM): "
    )
    assert "Limit 5, Requested " in error["message"]
    assert response["x-should-retry"] == "false"
    assert "retry-after" not in response.headers
    assert rates(response)["remaining-tokens"] == "5"


async def test_money_names_the_budget_and_when_it_resets(ask: Any, acme: Tenant) -> None:
    await sync_to_async(Tenant.objects.filter(pk=acme.pk).update)(timezone="Europe/Berlin")
    await limit(tenant=acme, metric="spend", per="month", currency="USD", amount=1_000)
    response = await ask()
    error = response.json()["error"]
    assert response.status_code == 429
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert error["message"].startswith(
        "You exceeded your current quota: the budget per month of this tenant does not"
    )
    assert "limit 0.000001 USD, spent 0.00 USD" in error["message"]
    assert error["message"].endswith("-01 00:00 (Europe/Berlin).")
    assert response["x-should-retry"] == "false"
    assert "retry-after" not in response.headers


async def test_what_others_spent_of_a_models_budget_is_not_told(ask: Any, models: dict[str, Model]) -> None:
    await limit(model=models["acme-chat"], metric="spend", per="total", currency="USD", amount=7)
    message = (await ask()).json()["error"]["message"]
    assert "prepaid credit of acme-chat for all who use it does not cover this request" in message
    assert "spent" not in message
    assert "does not reset" in message


async def test_fit_lowers_the_cap_and_says_so(ask: Any, acme: Tenant) -> None:
    await limit(tenant=acme, metric="tokens", per="day", amount=250, hold="hard", on_shortage="fit", floor=5)
    response = await ask(max_tokens=200)
    assert response.status_code == 200
    cap = int(response["x-counterfoil-max-tokens"])
    assert 5 <= cap < 200
    assert "x-counterfoil-max-tokens" not in (await ask(max_tokens=1)).headers


async def test_fit_never_goes_under_its_floor(ask: Any, acme: Tenant) -> None:
    await limit(tenant=acme, metric="tokens", per="day", amount=220, hold="hard", on_shortage="fit", floor=190)
    response = await ask(max_tokens=200)
    assert response.status_code == 429


@pytest.mark.parametrize("mode", ["enforce", "observe"])
async def test_hard_with_an_unbounded_input_says_what_to_do(ask: Any, acme: Tenant, mode: str) -> None:
    await limit(tenant=acme, metric="tokens", per="day", amount=10**6, hold="hard", mode=mode)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    response = await ask(messages=[{"role": "user", "content": [image]}])
    if mode == "observe":
        assert response.status_code == 200
        return
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "unbounded_request", "messages")
    assert "send text only" in error["message"]


async def test_observe_refuses_nobody(ask: Any, acme: Tenant) -> None:
    for fields in (
        {"metric": "requests", "per": "minute", "amount": 0},
        {"metric": "tokens", "per": "minute", "amount": 1},
        {"metric": "in_flight", "per": "", "amount": 0},
        {"metric": "spend", "per": "day", "currency": "USD", "amount": 0},
    ):
        await limit(tenant=acme, mode="observe", **fields)
    response = await ask()
    assert response.status_code == 200
    assert rates(response) == {}
    assert await sync_to_async(UsageRecord.objects.count)() == 1
