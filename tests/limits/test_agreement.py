"""Counters and ledger agree however a request ends, and whatever becomes of its rules."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.db import IntegrityError

from gateway.catalogue.models import Model
from gateway.ledger.books import Delta
from gateway.ledger.desk import Desk
from gateway.ledger.items import Ending, Order
from gateway.ledger.models import Hold, UsageRecord, WorkItem
from gateway.ledger.services import adjust, rate_unpriced, resolve_unknown
from gateway.ledger.verification import verify
from gateway.ledger.writer import Ticket
from gateway.limits.models import LimitRule, Plan, PlanMembership
from gateway.upstreams.base import Usage
from tenants.models import APIKey
from tests.limits.test_decisions import WHOLE, MakeOrder, MakeRule, db
from tests.limits.test_drift import CLASSES, FAILED, counters, die, settled


@pytest.mark.parametrize(
    "ending", [WHOLE, FAILED, CLASSES, Ending("interrupted", Usage(4, 0, 0, 1, 0, estimated=True))]
)
async def test_it_agrees_however_a_request_ends(
    desk: Desk, limited: MakeOrder, watched: list[LimitRule], ending: Ending
) -> None:
    await settled(desk, await db(limited), ending)
    await desk.admit(await db(limited))
    found = await db(verify)
    assert (found.drift, found.limits) == ([], len(watched))


async def test_it_agrees_after_a_caller_who_left(desk: Desk, limited: MakeOrder, watched: list[LimitRule]) -> None:
    order = await db(limited)
    await desk.admit(order)
    desk.writer.queue.put(Ticket(order.release()))
    while await db(Hold.objects.exists):
        await asyncio.sleep(0.01)
    assert (await db(verify)).drift == []
    assert set((await db(counters)).values()) == {(0, 0)}


async def test_it_agrees_after_a_sweep_and_a_late_settlement(
    desk: Desk, limited: MakeOrder, watched: list[LimitRule]
) -> None:
    order = await db(limited)
    await desk.admit(order)
    await db(die)
    assert (await db(verify)).drift == []
    assert (await db(UsageRecord.objects.get)).status == "unknown"
    await desk.settle(order, WHOLE)
    assert (await db(verify)).drift == []
    assert (await db(counters))[watched[3].pk] == (10, 0)


async def test_a_late_settlement_finds_a_rule_that_is_younger_than_its_request(
    desk: Desk, limited: MakeOrder, rule: MakeRule
) -> None:
    order = await db(limited)
    await desk.admit(order)
    young = await db(lambda: rule(metric="tokens", per="day", amount=1000))
    await settled(desk, await db(limited))
    await db(die)
    await desk.settle(order, WHOLE)
    assert (await db(counters))[young.pk] == (30, 0)
    assert (await db(verify)).drift == []


async def test_it_agrees_after_corrections_ratings_and_resolutions(
    desk: Desk, limited: MakeOrder, order: MakeOrder, watched: list[LimitRule], admin_user: Any, chat_model: Model
) -> None:
    right = await settled(desk, await db(limited))
    dead = await db(limited)
    await desk.admit(dead)
    await db(die)

    def correct() -> None:
        record = UsageRecord.objects.get(request_id=right.request_id)
        adjust(record=record, delta=Delta(output_tokens=100, charge=777), reason="miscounted", by=admin_user)
        item = WorkItem.objects.get(request_id=dead.request_id)
        resolve_unknown(item=item, charged=True, reason="the provider says so", by=admin_user, output_tokens=9)

    await db(correct)
    assert (await db(verify)).drift == []
    used = await db(counters)
    assert used[watched[4].pk][0] == 5 + 100 + 9  # output tokens of the key's day


async def test_an_unpriced_request_counts_its_charge_when_it_is_rated(
    desk: Desk, limited: MakeOrder, rule: MakeRule, admin_user: Any, chat_model: Model
) -> None:
    tokens = await db(lambda: rule(metric="tokens", per="day", amount=1000))

    def unpriced() -> Order:
        order = limited()
        order.charge_rates = order.cost_rates = None
        return order

    order = await settled(desk, await db(unpriced))
    spend = await db(lambda: rule(metric="spend", per="total", currency="USD", amount=10**12))
    await settled(desk, await db(limited))
    assert (await db(counters))[spend.pk] == (4_500, 0)
    await db(lambda: rate_unpriced(item=WorkItem.objects.get(request_id=order.request_id), by=admin_user))
    assert (await db(counters))[spend.pk] == (9_000, 0)
    assert (await db(counters))[tokens.pk] == (30, 0)
    assert (await db(verify)).drift == []


async def test_a_budget_that_is_added_late_knows_all_that_was_ever_spent(
    desk: Desk, limited: MakeOrder, rule: MakeRule
) -> None:
    await settled(desk, await db(limited))
    spend = await db(lambda: rule(metric="spend", per="total", currency="USD", amount=10**12))
    await settled(desk, await db(limited))
    assert (await db(counters))[spend.pk] == (9_000, 0)


async def test_other_currencies_other_models_and_neighbours_do_not_count(
    desk: Desk, limited: MakeOrder, rule: MakeRule, acme: APIKey, globex: APIKey, chat_model: Model
) -> None:
    other = await db(lambda: Model.objects.create(public_id="acme-code"))
    euros = await db(lambda: rule(model=chat_model, metric="spend", per="day", currency="EUR", amount=1))
    code = await db(lambda: rule(tenant=acme.tenant, model=other, metric="requests", per="day", amount=1))
    mine = await db(lambda: rule(metric="requests", per="day", amount=10))
    for _ in range(2):
        await settled(desk, await db(limited))
    await settled(desk, await db(lambda: limited(globex)))
    assert await db(counters) == {mine.pk: (2, 0)}
    assert not {euros.pk, code.pk} & (await db(counters)).keys()
    assert (await db(verify)).drift == []


async def test_a_renamed_model_keeps_what_was_used(
    desk: Desk, limited: MakeOrder, rule: MakeRule, chat_model: Model
) -> None:
    await settled(desk, await db(limited))
    await db(lambda: Model.objects.filter(pk=chat_model.pk).update(public_id="acme-chat-1"))
    await db(lambda: Model.objects.filter(pk=chat_model.pk).update(aliases=["acme-chat"]))
    mine = await db(lambda: rule(model=chat_model, metric="tokens", per="day", amount=1000))
    await settled(desk, await db(limited))
    assert (await db(counters))[mine.pk] == (30, 0)


# ---- rules that come and go ----


async def test_what_was_used_while_a_rule_was_off_counts_when_it_is_on_again(
    desk: Desk, limited: MakeOrder, rule: MakeRule
) -> None:
    mine = await db(lambda: rule(metric="requests", per="day", amount=100))
    await settled(desk, await db(limited))
    await db(lambda: LimitRule.objects.filter(pk=mine.pk).update(enabled=False))
    await settled(desk, await db(limited))
    assert (await db(verify)).drift == []  # a counter that nothing counts on need not be right
    await db(lambda: LimitRule.objects.filter(pk=mine.pk).update(enabled=True))
    await settled(desk, await db(limited))
    assert await db(counters) == {mine.pk: (3, 0)}


async def test_a_plans_limit_that_a_tenants_own_replaced_for_a_while_knows_all(
    desk: Desk, limited: MakeOrder, rule: MakeRule, acme: APIKey
) -> None:
    plan = await db(lambda: Plan.objects.create(slug="basic", name="Basic"))
    await db(lambda: PlanMembership.objects.create(tenant=acme.tenant, plan=plan))
    shared = await db(lambda: rule(plan=plan, metric="requests", per="day", amount=100))
    await settled(desk, await db(limited))
    own = await db(lambda: rule(metric="requests", per="day", amount=200))
    await settled(desk, await db(limited))
    assert await db(counters) == {own.pk: (2, 0)}
    await db(own.delete)
    await settled(desk, await db(limited))
    assert await db(counters) == {shared.pk: (3, 0)}
    await db(PlanMembership.objects.all().delete)
    await settled(desk, await db(limited))
    await db(lambda: PlanMembership.objects.create(tenant=acme.tenant, plan=plan))
    await settled(desk, await db(limited))
    assert await db(counters) == {shared.pk: (5, 0)}
    assert (await db(verify)).drift == []


async def test_a_rule_that_is_deleted_under_a_running_request_leaves_nothing(
    desk: Desk, limited: MakeOrder, rule: MakeRule
) -> None:
    mine = await db(lambda: rule(metric="requests", per="day", amount=100))
    order = await db(limited)
    await desk.admit(order)
    await db(mine.delete)
    await desk.settle(order, WHOLE)
    assert await db(counters) == {}
    assert (await db(verify)).drift == []


def test_what_a_rule_counts_is_fixed(rule: MakeRule) -> None:
    mine = rule(metric="tokens", per="day", amount=100)
    with pytest.raises(IntegrityError, match="make another"):
        LimitRule.objects.filter(pk=mine.pk).update(tokens="input")
    LimitRule.objects.filter(pk=mine.pk).update(amount=200, mode="observe", hold="hard")


# ---- drift ----
