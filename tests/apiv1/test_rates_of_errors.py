"""Errors that no limit was asked for say what is left, too; and a flood of them asks the database next to nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError
from django.test import AsyncClient

from apiv1 import error_rates, limits
from gateway import pipeline
from gateway.catalogue.models import Deployment, Model, Price
from gateway.limits.models import LimitRule
from gateway.limits.standings import read_windows
from tenants import services
from tenants.models import APIKey, Tenant

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {
    "model": "acme-chat",
    "messages": [{"role": "user", "content": "Hello there"}],
    "max_tokens": 20,
}
NAMES = {f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is not what these tests are about."""
    monkeypatch.setattr(error_rates, "LONGEST_S", 30)


@pytest.fixture
def limited(acme: Tenant) -> None:
    LimitRule.objects.create(tenant=acme, metric="requests", per="minute", amount=5)
    LimitRule.objects.create(tenant=acme, metric="tokens", per="day", amount=1_000)


@pytest.fixture
def ask(client: AsyncClient, models: dict[str, Model], bearer: dict[str, str]) -> Any:
    async def ask(headers: dict[str, str] = bearer, **changes: Any) -> Any:
        return await client.post(CHAT, {**HELLO, **changes}, content_type="application/json", headers=headers)

    return ask


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that windows are read."""
    seen: list[int] = []

    def counted(*args: Any) -> Any:
        seen.append(1)
        return read_windows(*args)

    monkeypatch.setattr(limits, "read_windows", counted)
    return seen


def rates(response: Any) -> dict[str, str]:
    return {name.lower(): response[name] for name in response.headers if name.lower() in NAMES}


def remaining(response: Any) -> str:
    assert set(rates(response)) == NAMES, (response.status_code, response.content)
    said: str = response["x-ratelimit-remaining-requests"]
    return said


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_that_no_limit_was_asked_for_says_what_is_left(
    ask: Any, client: AsyncClient, bearer: dict[str, str], limited: None, stream: bool
) -> None:
    assert remaining(await ask()) == "4"
    for status, changes in ((404, {"model": "zzz"}), (404, {"model": "globex-chat"}), (400, {"temperature": 9})):
        response = await ask(stream=stream, **changes)
        assert (response.status_code, remaining(response)) == (status, "4")
        assert response["x-ratelimit-limit-tokens"] == "1000"
    malformed = await client.post(CHAT, b'{"model":', content_type="application/json", headers=bearer)
    assert (malformed.status_code, remaining(malformed)) == (400, "4")
    form = await client.post(CHAT, b"a=b", content_type="text/plain", headers=bearer)
    assert (form.status_code, remaining(form)) == (400, "4")


async def test_what_the_catalogue_lacks_is_no_exception(ask: Any, limited: None) -> None:
    await sync_to_async(Price.objects.all().delete)()
    unpriced = await ask()
    assert (unpriced.status_code, remaining(unpriced)) == (403, "5")
    await sync_to_async(Deployment.objects.all().delete)()
    unserved = await ask()
    assert (unserved.status_code, remaining(unserved)) == (503, "5")


@pytest.mark.parametrize(
    ("status", "path"),
    [
        (404, "/v1/models/zzz"),
        (404, "/v1/limits/explain/req_0"),
        (400, "/v1/usage?by=year"),
        (400, "/v1/limits/simulate"),
    ],
)
async def test_errors_beside_chat_say_it_as_well(
    client: AsyncClient, models: dict[str, Model], bearer: dict[str, str], limited: None, status: int, path: str
) -> None:
    response = await client.get(path, headers=bearer)
    assert (response.status_code, remaining(response)) == (status, "5")


async def test_what_was_counted_meanwhile_is_in_the_next_error(ask: Any, limited: None) -> None:
    for left in ("4", "3", "2", "1", "0"):
        assert remaining(await ask()) == left
        assert remaining(await ask(temperature=9)) == left
    assert (await ask()).status_code == 429
    assert remaining(await ask(temperature=9)) == "0"


async def test_a_neighbours_numbers_are_never_shown(ask: Any, globex: Tenant, limited: None) -> None:
    issue = sync_to_async(services.issue_key)
    _, theirs = await issue(tenant=globex, name="theirs")
    make = sync_to_async(LimitRule.objects.create)
    await make(tenant=globex, metric="requests", per="minute", amount=77)
    neighbour = {"authorization": f"Bearer {theirs}"}
    mine, other = await asyncio.gather(ask(temperature=9), ask(neighbour, temperature=9))
    assert mine["x-ratelimit-limit-requests"] == "5"
    assert rates(other).keys() == {name for name in NAMES if name.endswith("requests")}
    assert other["x-ratelimit-remaining-requests"] == "77"


async def test_who_is_not_let_in_is_told_nothing(
    ask: Any, client: AsyncClient, bearer: dict[str, str], key: APIKey, limited: None, reads: list[int]
) -> None:
    assert remaining(await ask(temperature=9)) == "5"
    await sync_to_async(services.revoke_key)(key=key, by=None)
    refused = await client.get("/v1/models/zzz", headers=bearer)
    assert (refused.status_code, rates(refused)) == (401, {})
    stranger = await ask({"authorization": "Bearer sk-wrong"}, temperature=9)
    assert (stranger.status_code, rates(stranger)) == (401, {})
    assert len(reads) == 1


async def test_who_has_no_limits_is_not_looked_up(
    ask: Any, monkeypatch: pytest.MonkeyPatch, reads: list[int], acme: Tenant
) -> None:
    await sync_to_async(LimitRule.objects.create)(tenant=acme, metric="requests", per="day", amount=9, mode="observe")
    checked: list[Any] = []
    monkeypatch.setattr(pipeline, "ensure_fresh", lambda *args: checked.append(args))
    response = await ask(temperature=9)
    assert (response.status_code, rates(response)) == (400, {})
    assert (reads, checked) == ([], [])


async def test_admitted_requests_read_nothing_more(ask: Any, limited: None, reads: list[int]) -> None:
    for _ in range(6):
        await ask()
    assert reads == []


async def test_a_flood_is_a_few_reads(ask: Any, limited: None, reads: list[int]) -> None:
    began = time.monotonic()
    for _ in range(4):
        flood = await asyncio.gather(*(ask(temperature=9) for _ in range(25)))
        assert {remaining(response) for response in flood} == {"5"}
    seconds = time.monotonic() - began
    assert len(reads) <= 1 + seconds / error_rates.REMEMBERED_S


async def test_a_flood_of_keys_is_bounded_too(
    ask: Any, limited: None, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error_rates, "AT_ONCE", 0)
    response = await ask(temperature=9)
    assert (response.status_code, rates(response), reads) == (400, {}, [])


async def test_what_is_remembered_of_keys_is_bounded(
    ask: Any, acme: Tenant, limited: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error_rates, "KEYS", 2)
    for name in "abc":
        _, secret = await sync_to_async(services.issue_key)(tenant=acme, name=name)
        assert remaining(await ask({"authorization": f"Bearer {secret}"}, temperature=9)) == "5"
    assert len(error_rates.error_rates._known) == 2


def broken(*_: Any) -> Any:
    raise OperationalError("the database is away")


def defective(*_: Any) -> Any:
    raise ZeroDivisionError


@pytest.mark.parametrize("failing", [broken, defective])
async def test_a_read_that_fails_leaves_the_error_as_it_is(
    ask: Any, limited: None, monkeypatch: pytest.MonkeyPatch, failing: Callable[..., Any]
) -> None:
    known = await ask(temperature=9)
    error_rates.error_rates.forget()
    monkeypatch.setattr(limits, "read_windows", failing)
    response = await ask(temperature=9)
    assert (response.status_code, rates(response)) == (400, {})
    assert response.json() == known.json()


async def test_an_error_does_not_wait_for_a_slow_database(
    ask: Any, limited: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert remaining(await ask(temperature=9)) == "5"
    error_rates.error_rates.forget()
    go_on = threading.Event()

    def slow(*_: Any) -> list[Any]:
        go_on.wait(60)
        return []

    monkeypatch.setattr(limits, "read_windows", slow)
    monkeypatch.setattr(error_rates, "LONGEST_S", 0.05)
    try:
        responses = await asyncio.gather(*(ask(temperature=9) for _ in range(5)))  # comes back though nothing is read
    finally:
        go_on.set()
    assert [(response.status_code, rates(response)) for response in responses] == [(400, {})] * 5


async def test_a_client_that_leaves_takes_nothing_from_others(
    ask: Any, limited: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = asyncio.Event(), asyncio.Event()
    rates_of = error_rates.rates_of

    async def held_up(caller: Any) -> dict[str, str]:
        reading.set()
        await go_on.wait()
        return await rates_of(caller)

    monkeypatch.setattr(error_rates, "rates_of", held_up)
    first = asyncio.create_task(ask(temperature=9))
    await reading.wait()
    second = asyncio.create_task(ask(temperature=9))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    go_on.set()
    assert remaining(await second) == "5"
