"""GET /v1/limits/simulate: the answer that a request would then get, and nothing of a neighbour's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.test import AsyncClient

from gateway.catalogue.models import Model, Price
from gateway.ledger.models import Hold, UsageRecord
from gateway.limits.models import LimitCounter, LimitRule
from tenants import services
from tenants.models import APIKey, Tenant

CHAT, SIMULATE = "/v1/chat/completions", "/v1/limits/simulate"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 20}


@pytest.fixture
def neighbour(globex: Tenant) -> dict[str, str]:
    """globex's headers."""
    return {"authorization": f"Bearer {services.issue_key(tenant=globex, name='theirs')[1]}"}


@pytest.fixture
def ask(client: AsyncClient, models: dict[str, Model], bearer: dict[str, str]) -> Any:
    async def ask(expected: int = 200, **query: Any) -> dict[str, Any]:
        response = await client.get(SIMULATE, {"model": "acme-chat", **query}, headers=bearer)
        assert response.status_code == expected, response.content
        body: dict[str, Any] = response.json()
        return body if expected == 200 else body["error"]

    return ask


def limit(**fields: Any) -> Any:
    return sync_to_async(LimitRule.objects.create)(**fields)


async def chat(client: AsyncClient, headers: dict[str, str], model: str = "acme-chat") -> Any:
    return await client.post(CHAT, {**HELLO, "model": model}, content_type="application/json", headers=headers)


async def test_it_answers_as_the_request_is_then_answered_and_writes_nothing(
    client: AsyncClient, ask: Any, acme: Tenant, bearer: dict[str, str]
) -> None:
    await limit(tenant=acme, metric="requests", per="day", amount=1)
    said = await ask(model="acme-latest", input_tokens=10, output_tokens=5)
    assert (said["object"], said["allowed"], said["model"]) == ("limit.simulation", True, "acme-chat")
    assert (said["input_tokens"], said["output_tokens"], said["currency"]) == (10, 5, "USD")
    assert float(said["held"]) > 0
    assert said["summary"] == "Yes. It fits into every limit."
    assert not await sync_to_async(LimitCounter.objects.exists)()
    assert (await chat(client, bearer)).status_code == 200
    said = await ask()
    assert (said["allowed"], said["summary"]) == (False, "No. It does not fit into requests per day of acme.")
    (step,) = said["limits"]
    assert (step["amount"], step["used"], step["asked"], step["verdict"]) == (1, 1, 1, "refused")
    assert (await chat(client, bearer)).status_code == 429
    assert await sync_to_async(UsageRecord.objects.count)() == 1
    assert not await sync_to_async(Hold.objects.exists)()


async def test_another_time_has_its_own_window(
    client: AsyncClient, ask: Any, acme: Tenant, bearer: dict[str, str]
) -> None:
    await limit(tenant=acme, metric="requests", per="day", amount=1)
    await chat(client, bearer)
    now = datetime.now(UTC)
    ahead = now + timedelta(days=2)
    for at in (int(ahead.timestamp()), ahead.isoformat(), (now - timedelta(days=2)).isoformat()):
        said = await ask(at=at)
        assert (said["allowed"], said["limits"][0]["used"]) == (True, 0)
        assert datetime.fromisoformat(said["at"]).tzinfo is not None
    said = await ask(at="2030-12-24T18:00:00+05:30".replace("+", " "))  # as it arrives when nobody escapes the plus
    assert said["at"] == "2030-12-24T12:30:00+00:00"


async def test_it_knows_what_stands_in_the_way_beside_limits(ask: Any, models: dict[str, Model]) -> None:
    await sync_to_async(Model.objects.update)(max_output_tokens=10)
    assert (await ask(output_tokens=11))["summary"] == "No. The model acme-chat gives at most 10 completion tokens."
    await sync_to_async(Price.objects.all().delete)()
    assert (await ask())["summary"] == "No. The model acme-chat has no price in USD at that time."


async def test_fit_says_how_far_the_completion_would_be_lowered(ask: Any, acme: Tenant) -> None:
    await limit(tenant=acme, metric="tokens", per="day", amount=100, hold="hard", on_shortage="fit", floor=5)
    said = await ask(input_tokens=40, output_tokens=200)
    assert (said["allowed"], said["max_tokens"]) == (True, 60)


async def test_more_than_a_limit_that_guesses_has_is_said_honestly(ask: Any, key: APIKey) -> None:
    await limit(key=key, metric="tokens", per="day", amount=100)
    said = await ask(input_tokens=40, output_tokens=200)
    assert said["allowed"]
    assert said["summary"].startswith(
        "Yes. But if it really uses so many tokens, it uses more than tokens per day of "
    )
    (step,) = said["limits"]
    assert step["asked"] == 100
    assert "might use 240, more than the limit" in step["explanation"]


async def test_a_key_asks_about_itself_and_sees_no_neighbours_use(
    client: AsyncClient,
    ask: Any,
    acme: Tenant,
    globex: Tenant,
    models: dict[str, Model],
    neighbour: dict[str, str],
) -> None:
    other, _ = await sync_to_async(services.issue_key)(tenant=acme, name="another")
    shared = await limit(model=models["acme-chat"], metric="requests", per="day", amount=5)
    await limit(key=other, metric="requests", per="day", amount=0)
    await limit(tenant=globex, metric="requests", per="day", amount=2)
    for _ in range(2):
        assert (await chat(client, neighbour)).status_code == 200
    (step,) = (await ask())["limits"]
    assert (step["limit"], step["amount"], step["used"], step["held"]) == ("requests per day of model", 5, None, None)
    assert step["explanation"] == "It asked for 1 of 5: it fits."
    await sync_to_async(LimitRule.objects.filter(pk=shared.pk).update)(amount=2)
    said = await ask()
    assert (said["allowed"], said["limits"][0]["explanation"]) == (False, "It asked for 1: it does not fit.")
    theirs = (await client.get(SIMULATE, {"model": "acme-chat"}, headers=neighbour)).json()
    assert theirs["summary"].startswith("No. It does not fit into requests per day of ")
    assert (await ask(404, model="globex-chat"))["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ({"model": ""}, "model", "missing_required_parameter"),
        ({"input_tokens": "-1"}, "input_tokens", "integer_below_min_value"),
        ({"output_tokens": "9" * 5000}, "output_tokens", "integer_above_max_value"),
        ({"output_tokens": "1000000001"}, "output_tokens", "integer_above_max_value"),
        ({"input_tokens": "1.5"}, "input_tokens", "invalid_type"),
        ({"input_tokens": "٣"}, "input_tokens", "invalid_type"),
        ({"input_tokens": ""}, "input_tokens", "invalid_type"),
        *[
            ({"at": at}, "at", "invalid_value")
            for at in (
                "tomorrow", "2026-12-24", "2026-12-24T18:00:00", "99999999999", "0", "-1", "9" * 50, "1e9", "\x00",
                "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-02-30T00:00:00Z",
                "2026-12-24T18:00:00+99:00", "2100-01-01T00:00:00Z", "1999-12-31T23:59:59Z",
            )
        ],
    ],
)  # fmt: skip
async def test_what_makes_no_sense_is_refused_in_openais_form(
    ask: Any, query: dict[str, str], param: str, code: str
) -> None:
    error = await ask(400, **query)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert len(error["message"]) < 500


async def test_an_unknown_model_is_not_found(ask: Any) -> None:
    error = await ask(404, model="no\x00thing")
    assert (error["param"], error["code"]) == ("model", "model_not_found")


async def test_no_key_no_answer(client: AsyncClient) -> None:
    assert (await client.get(SIMULATE, {"model": "acme-chat"})).status_code == 401
