"""GET /v1/usage: a key's own usage, in OpenAI's manners, decided on fresh facts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.test import AsyncClient

from gateway.catalogue.pricing import format_amount
from tenants import services
from tenants.models import APIKey, Tenant
from tests.billing import books

PERIOD = {"from": "2026-11-01", "to": "2026-11-30"}

in_thread = sync_to_async


async def usage(secret: str, **parameters: Any) -> tuple[int, dict[str, Any]]:
    headers = {"authorization": f"Bearer {secret}"}
    answer = await AsyncClient().get("/v1/usage", PERIOD | parameters, headers=headers)
    assert answer["content-type"] == "application/json"
    return answer.status_code, answer.json()


async def test_it_lists_the_key_s_requests_newest_first(key: APIKey, secret: str) -> None:
    first = await in_thread(books.record)(key, client_request_id="c-1")
    second = await in_thread(books.record)(key, books.NOON + timedelta(minutes=1), charge=None)
    await in_thread(books.adjustment)(key, first, kind="correction", charge=-5, output_tokens=-1)
    status, body = await usage(secret)
    assert status == 200
    assert (body["object"], body["has_more"]) == ("list", False)
    assert (body["first_id"], body["last_id"]) == (f"req_{second.hex}", f"req_{first.hex}")
    assert body["data"][0]["charge"] is None
    assert body["data"][1] == {
        "id": f"req_{first.hex}",
        "object": "usage.request",
        "created": int(books.NOON.timestamp()),
        "date": "2026-11-10",
        "model": "acme-chat",
        "served_model": "acme-chat",
        "endpoint": "chat.completions",
        "stream": False,
        "status": "completed",
        "estimated": False,
        "usage": {
            "input_tokens": 1000,
            "cached_input_tokens": 200,
            "cache_write_tokens": 0,
            "output_tokens": 500,
            "reasoning_tokens": 50,
            "total_tokens": 1750,
        },
        "currency": "USD",
        "charge": "0.000495",
        "client_request_id": "c-1",
        "end_user": "",
        "adjustments": [
            {
                "object": "usage.adjustment",
                "kind": "correction",
                "created": body["data"][1]["adjustments"][0]["created"],
                "usage": dict.fromkeys(
                    ["input_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens"], 0
                )
                | {"output_tokens": -1, "total_tokens": -1},
                "currency": "USD",
                "charge": "-0.000000005",
            }
        ],
    }


async def test_what_we_pay_is_not_said(key: APIKey, secret: str) -> None:
    await in_thread(books.record)(key, cost=777_777, cost_currency="EUR")
    await in_thread(books.record)(key, cost=777_777, cost_currency="JPY")
    for by in ("request", "day"):
        _, body = await usage(secret, by=by)
        assert all("cost" not in str(item) and "EUR" not in str(item) for item in body["data"])
    assert len(body["data"]) == 1  # one day, whatever our providers bill in


async def test_it_sums_by_day(key: APIKey, secret: str) -> None:
    for day in range(3):
        first = await in_thread(books.record)(key, books.NOON + timedelta(days=day))
        await in_thread(books.record)(key, books.NOON + timedelta(days=day), status="failed", charge=0)
    await in_thread(books.adjustment)(key, first, books.NOON + timedelta(days=2), charge=5)
    await in_thread(books.settle_rollups)()
    _, body = await usage(secret, by="day")
    assert [(item["id"], item["requests"], item["errors"], item["charge"]) for item in body["data"]] == [
        ("day_2026-11-12.correction.USD.acme-chat", 0, 0, "0.000000005"),
        ("day_2026-11-12.usage.USD.acme-chat", 2, 1, "0.000495"),
        ("day_2026-11-11.usage.USD.acme-chat", 2, 1, "0.000495"),
        ("day_2026-11-10.usage.USD.acme-chat", 2, 1, "0.000495"),
    ]


@pytest.mark.parametrize("by", ["request", "day"])
async def test_its_pages_are_the_whole(key: APIKey, secret: str, by: str) -> None:
    for day in range(5):
        await in_thread(books.record)(key, books.NOON + timedelta(days=day))
    _, whole = await usage(secret, by=by)
    items: list[Any] = []
    after, more = "", True
    while more:
        _, page = await usage(secret, by=by, limit=2, after=after)
        items += page["data"]
        after, more = page["last_id"], page["has_more"]
    assert items == whole["data"]
    assert len(items) == 5


async def test_a_key_sees_its_own_only(key: APIKey, secret: str, acme: Tenant, globex: Tenant) -> None:
    colleague, _ = await in_thread(services.issue_key)(tenant=acme, name="server")
    neighbour, other = await in_thread(services.issue_key)(tenant=globex, name="laptop")
    own = await in_thread(books.record)(key)
    await in_thread(books.record)(colleague)
    await in_thread(books.record)(neighbour)
    _, body = await usage(secret)
    assert [item["id"] for item in body["data"]] == [f"req_{own.hex}"]
    _, body = await usage(secret, by="day")
    assert [item["requests"] for item in body["data"]] == [1]
    # nor by pointing at a neighbour's request
    _, body = await usage(other, after=f"req_{own.hex}")
    assert f"req_{own.hex}" not in str(body)


async def test_a_suspended_tenant_is_told_so_from_the_next_request_on(acme: Tenant, secret: str) -> None:
    assert (await usage(secret))[0] == 200
    await in_thread(Tenant.objects.filter(pk=acme.pk).update)(status="suspended")
    status, body = await usage(secret)
    assert (status, body["error"]["code"]) == (401, "tenant_suspended")


async def test_a_revoked_key_is_refused_from_the_next_request_on(key: APIKey, secret: str) -> None:
    assert (await usage(secret))[0] == 200
    await in_thread(APIKey.objects.filter(pk=key.pk).update)(status="revoked")
    status, body = await usage(secret)
    assert (status, body["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "parameters, param",
    [
        ({"from": "1.1.2026"}, "from"),
        ({"to": "2026-13-01"}, "to"),
        ({"from": "2026-12-01"}, "from"),
        ({"by": "week"}, "by"),
        ({"limit": "0"}, "limit"),
        ({"limit": "1000"}, "limit"),
        ({"after": "req_xyz"}, "after"),
        ({"after": "day_2026-11-10.usage.USD.acme-chat"}, "after"),
        ({"after": "day_2026-99-10.usage.USD.acme-chat", "by": "day"}, "after"),
    ],
)
async def test_it_says_what_is_wrong(secret: str, parameters: dict[str, str], param: str) -> None:
    status, body = await usage(secret, **parameters)
    assert status == 400
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["type"], body["error"]["param"]) == ("invalid_request_error", param)


async def test_without_a_period_it_answers_the_last_days(key: APIKey, secret: str) -> None:
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    await in_thread(books.record)(key, now)
    await in_thread(books.record)(key, now - timedelta(days=29, hours=-1))
    await in_thread(books.record)(key, now - timedelta(days=31))
    answer = await AsyncClient().get("/v1/usage", headers={"authorization": f"Bearer {secret}"})
    assert len(answer.json()["data"]) == 2


async def test_an_answer_is_in_the_books_at_once_under_its_request_id(
    client: AsyncClient, models: Any, bearer: dict[str, str], secret: str
) -> None:
    """From the wire through the desk to every report: one record, the same numbers."""
    request = {"model": "acme-chat", "messages": [{"role": "user", "content": "Good morning"}]}
    answer = await client.post("/v1/chat/completions", request, content_type="application/json", headers=bearer)
    assert answer.status_code == 200
    today = {"from": "", "to": ""}
    _, by_request = await usage(secret, **today)
    (item,) = by_request["data"]
    assert item["id"] == answer["x-request-id"]
    assert item["usage"]["total_tokens"] == answer.json()["usage"]["total_tokens"] > 0
    tokens = item["usage"]["input_tokens"] + item["usage"]["output_tokens"]
    assert item["charge"] == format_amount(tokens * 1000)  # a dollar for a million
    for _ in range(2):
        _, by_day = await usage(secret, by="day", **today)
        (day,) = by_day["data"]
        assert (day["usage"], day["charge"], day["requests"]) == (item["usage"], item["charge"], 1)
        await in_thread(books.settle_rollups)()
