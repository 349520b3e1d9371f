"""Which deployment a request goes to, seen from the provider: keys that keep together, speeds that are found out."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from gateway.catalogue.models import Deployment, Provider
from gateway.failover.board import Board
from gateway.failover.load import Load
from tests.failover.requests.conftest import together
from tests.failover.requests.test_attempts import Served, asked
from tests.upstream import Upstream
from tests.upstream_scripts import error

SAME: list[dict[str, Any]] = [{"upstream_model": name, "priority": 0} for name in ("one", "two", "three", "four")]


@pytest.mark.parametrize("field", ["prompt_cache_key", "user"])
async def test_a_conversation_keeps_together_when_its_deployment_is_out(
    upstream: Upstream, served: Served, ask: Any, nothing_known: Board, field: str
) -> None:
    await sync_to_async(served)("acme-chat", *SAME, sticky=True)
    for _ in range(3):
        await ask(**{field: "a conversation"})
    (home,) = set(asked(upstream))
    deployment = await Deployment.objects.aget(upstream_model=home)
    for _ in range(5):
        nothing_known.failed(deployment.pk, "connect")
    upstream.reset()
    for _ in range(8):
        await ask(**{field: "a conversation"})
    (refuge,) = set(asked(upstream))
    assert refuge != home


async def test_a_conversation_falls_back_to_where_it_would_go(upstream: Upstream, served: Served, ask: Any) -> None:
    await sync_to_async(served)("acme-chat", *SAME, sticky=True)
    await ask(prompt_cache_key="a conversation")
    (home,) = asked(upstream)
    upstream.reset()
    upstream.script(home, error(503))
    for _ in range(4):
        assert (await ask(prompt_cache_key="a conversation")).status_code == 200
    assert len({name for name in asked(upstream) if name != home}) == 1


async def two_of_which_one_is_unheard(served: Served, process_loads: defaultdict[int, Load], public_id: str) -> None:
    """It is "one"."""
    model = await sync_to_async(served)(public_id, *SAME[:2], strategy="lowest_latency")
    known = await model.deployments.aget(upstream_model="two")
    process_loads[known.pk].succeeded(10, stream=False)


async def test_one_request_finds_out_how_fast_a_deployment_is(
    upstream: Upstream, served: Served, ask: Any, process_loads: defaultdict[int, Load]
) -> None:
    await two_of_which_one_is_unheard(served, process_loads, "acme-chat")
    upstream.script("one", together(upstream, 8))
    await asyncio.gather(*(ask() for _ in range(8)))
    assert Counter(asked(upstream)) == {"one": 1, "two": 7}


async def test_those_who_come_first_of_all_do_not_all_wait_with_one(
    upstream: Upstream, served: Served, ask: Any
) -> None:
    await sync_to_async(served)("acme-chat", *SAME, strategy="lowest_latency")
    for row in SAME:
        upstream.script(row["upstream_model"], together(upstream, 12))
    await asyncio.gather(*(ask() for _ in range(12)))
    assert len(set(asked(upstream))) == 4


async def test_a_fallback_that_stands_by_is_not_being_asked(
    upstream: Upstream, served: Served, ask: Any, process_loads: defaultdict[int, Load]
) -> None:
    await two_of_which_one_is_unheard(served, process_loads, "acme-small")
    await sync_to_async(served)("acme-chat", "first", fallbacks=["acme-small"])
    await ask()
    await ask(model="acme-small")
    assert asked(upstream) == ["first", "one"]


async def test_a_deployment_that_only_fails_is_not_the_fastest(upstream: Upstream, served: Served, ask: Any) -> None:
    await sync_to_async(served)("acme-chat", *SAME[:2], strategy="lowest_latency")
    upstream.script("one", error(500))
    for _ in range(4):
        assert (await ask()).status_code == 200
    assert asked(upstream).count("one") <= 1


async def test_prices_in_two_currencies_do_not_take_turns(
    upstream: Upstream, served: Served, ask: Any, provider: Provider
) -> None:
    euros = await Provider.objects.acreate(name="euros", base_url=upstream.url)
    places = [SAME[0], {**SAME[1], "provider": euros}]
    model = await sync_to_async(served)("acme-chat", *places, strategy="lowest_cost")
    for owner, currency in ((provider, "USD"), (euros, "EUR")):
        await model.prices.acreate(
            side="cost", provider=owner, currency=currency, input=10**9, output=10**9,
            effective_from="2026-01-01T00:00Z",
        )  # fmt: skip
    for _ in range(8):
        await ask()
    assert set(asked(upstream)) == {"one"}
