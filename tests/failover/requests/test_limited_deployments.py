"""A deployment's own limits, from the client's side: passed over while it has no room."""

from __future__ import annotations

import asyncio
from typing import Any

from asgiref.sync import sync_to_async

from gateway.catalogue.models import Deployment, Provider
from gateway.failover.board import Board
from gateway.ledger.models import Attempt, Gate, Hold, UsageRecord
from gateway.limits.models import LimitRule, Refusal
from tenants.models import APIKey
from tests.failover.requests.test_attempts import Served, asked, books
from tests.upstream import Upstream
from tests.upstream_scripts import error, hang


def limited(name: str, **limits: int) -> dict[str, Any]:
    return {"upstream_model": name, **limits}


async def test_the_next_one_is_asked_when_the_first_has_no_room(upstream: Upstream, served: Served, ask: Any) -> None:
    await sync_to_async(served)("acme-chat", limited("first", rpm=2), "second")
    for _ in range(4):
        assert (await ask()).status_code == 200
    assert asked(upstream) == ["first", "first", "second", "second"]
    assert await Attempt.objects.acount() == 0
    deployments = [r.deployment_id async for r in UsageRecord.objects.order_by("request_id")]
    assert deployments[0] == deployments[1] != deployments[2] == deployments[3]


async def test_a_model_without_room_says_when_to_come_again(
    upstream: Upstream, served: Served, ask: Any, key: APIKey
) -> None:
    await LimitRule.objects.acreate(key=key, metric="requests", per="day", amount=2)
    await sync_to_async(served)("acme-chat", limited("first", rpm=1), limited("second", tpm=10))
    assert (await ask()).status_code == 200
    full = await ask()
    assert full.status_code == 503
    assert "at its capacity" in full.json()["error"]["message"]
    assert 50 < int(full.headers["retry-after"]) <= 61
    assert asked(upstream) == ["first"]
    # Neither its limit nor the list of refusals knows of it.
    assert await UsageRecord.objects.acount() == 1
    assert await Hold.objects.acount() == await Refusal.objects.acount() == 0


async def test_what_no_deployment_ever_takes_is_not_told_to_come_again(
    upstream: Upstream, served: Served, ask: Any, nothing_known: Board
) -> None:
    model = await sync_to_async(served)("acme-chat", limited("first", tpm=5), limited("second", tpm=8))
    refused = await ask()
    said = refused.json()["error"]
    assert (refused.status_code, said["type"], said["code"]) == (429, "tokens", "rate_limit_exceeded")
    assert said["message"].startswith("Request too large for acme-chat on tokens per min (TPM): Limit 8, Requested ")
    assert refused.headers["x-should-retry"] == "false" and "retry-after" not in refused.headers
    assert await Hold.objects.acount() == await UsageRecord.objects.acount() == 0
    # One that takes it, and is only out at the moment, is worth waiting for.
    provider = await Provider.objects.aget()
    third = await Deployment.objects.acreate(model=model, provider=provider, upstream_model="third")
    for _ in range(5):
        nothing_known.failed(third.pk, "connect")
    assert (await ask()).status_code == 503


async def test_a_fallback_that_takes_it_and_is_out_is_worth_waiting_for(
    served: Served, ask: Any, nothing_known: Board
) -> None:
    await sync_to_async(served)("acme-large", "large")
    await sync_to_async(served)("acme-chat", limited("first", tpm=5), fallbacks=["acme-large"])
    large = await Deployment.objects.aget(upstream_model="large")
    for _ in range(5):
        nothing_known.failed(large.pk, "connect")
    full = await ask()
    assert full.status_code == 503 and "retry-after" in full.headers


async def test_more_than_may_be_in_flight_go_elsewhere(upstream: Upstream, served: Served, ask: Any) -> None:
    await sync_to_async(served)("acme-chat", limited("first", max_in_flight=1), "second", first_byte_timeout_s=3)
    upstream.script("first", hang)
    slow = asyncio.ensure_future(ask())
    async with asyncio.timeout(60):
        while not upstream.served:
            await asyncio.sleep(0.01)
    assert (await ask()).status_code == 200
    assert asked(upstream) == ["first", "second"]
    assert (await slow).status_code == 200
    assert asked(upstream) == ["first", "second", "second"]
    upstream.reset()
    assert (await ask()).status_code == 200
    assert asked(upstream) == ["first"]  # it has room again


async def test_a_further_attempt_goes_where_there_is_room(upstream: Upstream, served: Served, ask: Any) -> None:
    await sync_to_async(served)("acme-small", "small")
    await sync_to_async(served)(
        "acme-chat", limited("first", tpm=10_000), limited("second", rpm=1), fallbacks=["acme-small"]
    )
    upstream.script("first", error(500))
    upstream.script("second", error(500))
    assert (await ask()).json()["model"] == "acme-small"
    record, attempts = await books()
    assert [attempt.outcome for attempt in attempts] == ["status_500", "status_500", "ok"]
    assert (record.served_model, record.deployment_id) == ("acme-small", attempts[-1].deployment_id)
    first, second = [gate async for gate in Gate.objects.order_by("deployment_id")]
    assert (sum(first.requests), sum(first.tokens)) == (1, 0)  # what failed used nothing
    assert (sum(second.requests), sum(second.tokens)) == (1, 0)
    await ask()  # the second has no room: it is not even tried
    assert asked(upstream) == ["first", "second", "small", "first", "small"]
