"""Floods without a key: counted by address, in memory, and never at the expense of a good key."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import AsyncClient, RequestFactory

from apiv1 import strangers as module
from apiv1.strangers import Strangers, address_of

MODELS = "/v1/models"


@pytest.fixture(autouse=True)
def few(settings: Any) -> None:
    settings.UNAUTHENTICATED_PER_MINUTE = 6


async def test_it_refuses_a_flood_without_a_query(visitor: AsyncClient) -> None:
    """No database fixture: a query would fail."""
    statuses = [(await visitor.get(MODELS)).status_code for _ in range(9)]
    assert statuses == [401] * 6 + [429] * 3
    response = await visitor.post("/v1/chat/completions")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (429, "rate_limit_exceeded", "requests")
    wait = int(response.headers["retry-after-ms"])
    assert 0 < wait <= 10_000
    assert int(response.headers["retry-after"]) == -(-wait // 1000)


async def test_a_good_key_of_that_address_is_served(client: AsyncClient, models: Any, bearer: dict[str, str]) -> None:
    for _ in range(9):
        refused = await client.get(MODELS)
    assert refused.status_code == 429
    assert (await client.get(MODELS, headers=bearer)).status_code == 200
    assert (await client.get(MODELS, headers=bearer)).status_code == 200


async def test_zero_is_no_limit(visitor: AsyncClient, settings: Any) -> None:
    settings.UNAUTHENTICATED_PER_MINUTE = 0
    assert {(await visitor.get(MODELS)).status_code for _ in range(20)} == {401}


def test_who_waits_as_told_is_let_through_once() -> None:
    bucket, now = Strangers(), 100.0
    assert [bucket.refusal("192.0.2.1", now) for _ in range(6)] == [None] * 6
    refusal = bucket.refusal("192.0.2.1", now)
    assert refusal is not None
    now += int(refusal.headers["retry-after-ms"]) / 1000
    assert bucket.refusal("192.0.2.1", now) is None
    assert bucket.refusal("192.0.2.1", now) is not None
    assert bucket.refusal("192.0.2.2", now) is None


def test_its_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ADDRESSES", 10)
    bucket = Strangers()
    for number in range(100):
        bucket.refusal(f"192.0.2.{number}")
    assert len(bucket._full_at) == 10


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("/run/socket", ""),
    ],
)
def test_one_bucket_for_an_address_or_an_ipv6_network(peer: str, address: str) -> None:
    assert address_of(_request(peer)) == address


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("203.0.113.9, 198.51.100.7", "198.51.100.7"),  # what the client made up comes first
        ("198.51.100.7:4711", "198.51.100.7"),
        ("[2001:db8::1]:4711", "2001:db8::"),
        ("unknown", "192.0.2.1"),
        ("", "192.0.2.1"),
    ],
)
def test_only_a_proxy_of_ours_says_who_it_is(settings: Any, forwarded: str, address: str) -> None:
    request = _request("192.0.2.1", forwarded)
    assert address_of(request) == "192.0.2.1"
    settings.BEHIND_PROXY = True
    assert address_of(request) == address


def _request(peer: str, forwarded: str = "") -> Any:
    request: Any = RequestFactory().get("/", headers={"X-Forwarded-For": forwarded})
    request.scope = {"client": [peer, 4711]}
    return request
