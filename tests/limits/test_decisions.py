"""Limits as the desk decides them: exact, all or none, and true to what was really used."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from gateway.ledger.desk import Desk
from gateway.ledger.items import Ending, Order
from gateway.ledger.verification import verify
from gateway.limits.models import LimitCounter, LimitRule
from gateway.upstreams.base import Usage
from tenants.models import APIKey

MakeOrder = Callable[..., Order]
MakeRule = Callable[..., LimitRule]
WHOLE = Ending("completed", Usage(input_tokens=10, output_tokens=5))


async def db(function: Callable[..., Any], *args: Any) -> Any:
    return await sync_to_async(function)(*args)


async def admitted(desk: Desk, orders: list[Order]) -> list[bool]:
    return [verdict == "ok" for verdict, _ in await asyncio.gather(*(desk.admit(o) for o in orders))]


@pytest.mark.parametrize(
    "fields",
    [
        {"metric": "requests", "per": "minute", "amount": 5},
        {"metric": "requests", "per": "day", "amount": 5},
        {"metric": "in_flight", "per": "", "amount": 5},
        {"metric": "tokens", "per": "minute", "amount": 5 * 30 + 29},
        {"metric": "tokens", "per": "day", "tokens": "output", "amount": 5 * 20},
        {"metric": "spend", "per": "month", "currency": "USD", "amount": 5 * (1_500 + 12_000 + 3)},
    ],
)
async def test_it_admits_exactly_what_the_limit_allows(
    desk: Desk, limited: MakeOrder, rule: MakeRule, fields: dict[str, Any]
) -> None:
    await db(lambda: rule(**fields))
    outcomes = await admitted(desk, await db(lambda: [limited() for _ in range(12)]))
    assert outcomes.count(True) == 5


async def test_a_refusal_has_the_numbers_that_it_was_decided_on(
    desk: Desk, limited: MakeOrder, rule: MakeRule
) -> None:
    mine = await db(lambda: rule(metric="requests", per="minute", amount=1))
    first, second = await db(lambda: [limited(), limited()])
    began = time.monotonic()
    await desk.admit(first)
    verdict, states = await desk.admit(second)
    passed_ms = 1000 * (time.monotonic() - began)
    assert verdict == "limited"
    (state,) = states
    assert (state["rule"], state["amount"], state["taken"], state["ask"], state["fits"]) == (mine.pk, 1, 1, 1, False)
    assert 60_000 - passed_ms <= state["wait_ms"] <= 61_000


async def test_a_request_takes_from_all_its_limits_or_from_none(
    desk: Desk, limited: MakeOrder, rule: MakeRule, acme: APIKey
) -> None:
    wide = await db(lambda: rule(metric="requests", per="day", amount=100))
    await db(lambda: rule(key=acme, metric="tokens", per="day", amount=30))
    assert await admitted(desk, await db(lambda: [limited() for _ in range(3)])) == [True, False, False]
    assert (await db(lambda: LimitCounter.objects.get(rule_id=wide.pk))).held == 1


async def test_settlement_trues_up_tokens_and_spend(desk: Desk, limited: MakeOrder, rule: MakeRule) -> None:
    tokens = await db(lambda: rule(metric="tokens", per="day", amount=1000))
    spend = await db(lambda: rule(metric="spend", per="total", currency="USD", amount=10**9))
    flight = await db(lambda: rule(metric="in_flight", per="", amount=3))
    mine = await db(limited)
    await desk.admit(mine)
    held = await db(lambda: LimitCounter.objects.get(rule_id=tokens.pk))
    assert (held.used, held.held) == (0, 30)
    await desk.settle(mine, WHOLE)
    counters = await db(lambda: {c.rule_id: (c.used, c.held) for c in LimitCounter.objects.all()})
    assert counters == {tokens.pk: (15, 0), spend.pk: (1_500 + 3_000, 0), flight.pk: (0, 0)}
    assert (await db(verify)).drift == []


async def test_settlement_gives_a_minute_its_unused_tokens_back(
    desk: Desk, limited: MakeOrder, rule: MakeRule
) -> None:
    await db(lambda: rule(metric="tokens", per="minute", amount=45))
    first, second, third = await db(lambda: [limited() for _ in range(3)])
    assert (await desk.admit(first))[0] == "ok"
    assert (await desk.admit(second))[0] == "limited"
    await desk.settle(first, WHOLE)  # 15 of 30
    assert (await desk.admit(second))[0] == "ok"
    assert (await desk.admit(third))[0] == "limited"


async def test_observe_counts_and_refuses_nobody(desk: Desk, limited: MakeOrder, rule: MakeRule) -> None:
    mine = await db(lambda: rule(metric="requests", per="day", amount=1, mode="observe"))
    assert all(await admitted(desk, await db(lambda: [limited() for _ in range(3)])))
    assert (await db(lambda: LimitCounter.objects.get(rule_id=mine.pk))).held == 3


async def test_a_model_rule_counts_across_tenants(
    desk: Desk, limited: MakeOrder, rule: MakeRule, globex: APIKey, chat_model: Any
) -> None:
    await db(lambda: rule(model=chat_model, metric="requests", per="minute", amount=3))
    orders = await db(lambda: [limited(), limited(), limited(globex), limited(globex)])
    assert (await admitted(desk, orders)).count(True) == 3


async def test_a_rule_added_to_a_used_key_starts_from_the_ledger(
    desk: Desk, limited: MakeOrder, rule: MakeRule
) -> None:
    done, running = await db(lambda: [limited(), limited()])
    await desk.admit(done)
    await desk.settle(done, WHOLE)
    await desk.admit(running)
    mine = await db(lambda: rule(metric="tokens", per="day", amount=1000))
    await desk.admit(await db(limited))
    counter = await db(lambda: LimitCounter.objects.get(rule_id=mine.pk))
    assert (counter.used, counter.held) == (15, 60)
    await desk.settle(running, WHOLE)  # its hold was adopted by the counter
    counter = await db(lambda: LimitCounter.objects.get(rule_id=mine.pk))
    assert (counter.used, counter.held) == (30, 30)


async def test_a_changed_amount_keeps_what_was_used(desk: Desk, limited: MakeOrder, rule: MakeRule) -> None:
    mine = await db(lambda: rule(metric="requests", per="day", amount=2))
    assert (await admitted(desk, await db(lambda: [limited() for _ in range(3)]))).count(True) == 2
    await db(lambda: LimitRule.objects.filter(pk=mine.pk).update(amount=3))
    assert (await admitted(desk, await db(lambda: [limited() for _ in range(3)]))).count(True) == 1
