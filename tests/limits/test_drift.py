"""Counters and ledger agree however a request ends; and when they do not, it is found, repaired and told."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection
from django.utils import timezone

from gateway.catalogue.models import Model, Price
from gateway.ledger import drift
from gateway.ledger.books import Delta
from gateway.ledger.desk import Desk
from gateway.ledger.items import Ending, Order
from gateway.ledger.models import Counter, DriftCheck, DriftFinding, Hold, Process, UsageRecord, WorkItem
from gateway.ledger.services import adjust, rate_unpriced, resolve_unknown
from gateway.ledger.sweeper import sweep
from gateway.ledger.verification import verify
from gateway.ledger.writer import Ticket
from gateway.limits.models import LimitCounter, LimitRule, Plan, PlanMembership
from gateway.upstreams.base import Usage
from tenants.models import APIKey
from tests.limits.test_decisions import WHOLE, MakeOrder, MakeRule, db

FAILED = Ending("failed", Usage(), 502, "upstream_error")
CLASSES = Ending("completed", Usage(10, 3, 2, 5, 7))  # input, cached, cache write, output, reasoning


@pytest.fixture
def watched(rule: MakeRule, acme: APIKey, chat_model: Model) -> list[LimitRule]:
    """Rules of every kind on every subject."""
    plan = Plan.objects.create(slug="basic", name="Basic")
    PlanMembership.objects.create(tenant=acme.tenant, plan=plan)
    much: dict[str, Any] = {"amount": 10**12}
    return [
        rule(metric="requests", per="minute", **much),
        rule(metric="requests", per="day", **much),
        rule(metric="tokens", per="minute", **much),
        rule(metric="tokens", per="day", tokens="input", **much),
        rule(key=acme, metric="tokens", per="day", tokens="output", **much),
        rule(metric="in_flight", per="", **much),
        rule(metric="spend", per="month", currency="USD", **much),
        rule(metric="spend", per="total", currency="USD", **much),
        rule(model=chat_model, metric="tokens", per="day", **much),
        rule(tenant=acme.tenant, model=chat_model, metric="spend", per="day", currency="USD", **much),
        rule(plan=plan, metric="tokens", per="day", **much),
        rule(plan=plan, metric="spend", per="week", currency="USD", mode="observe", **much),
    ]


def counters() -> dict[int, tuple[int, int]]:
    return {c.rule_id: (int(c.used), int(c.held)) for c in LimitCounter.objects.all()}


def die() -> None:
    """The process of the holds is seen dead, and swept."""
    Process.objects.update(ended_at=timezone.now(), suspected_at=timezone.now())
    assert sweep() > 0


async def settled(desk: Desk, order: Order, ending: Ending = WHOLE) -> Order:
    assert (await desk.admit(order))[0] == "ok"
    await desk.settle(order, ending)
    return order


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


async def spoilt(desk: Desk, limited: MakeOrder) -> None:
    await settled(desk, await db(limited))
    await desk.admit(await db(limited))

    def spoil() -> None:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE limits_limitcounter SET used = used + 7, held = held - 2 WHERE slots IS NULL")
            cursor.execute(
                "UPDATE limits_limitcounter SET slots[(slot_at % 61) + 1] = slots[(slot_at % 61) + 1] + 5"
                " WHERE slots IS NOT NULL"
            )
        Counter.objects.filter(scope="key").update(tokens=1)
        Counter.objects.filter(scope="tenant").delete()

    await db(spoil)


async def test_drift_is_found_repaired_and_kept(desk: Desk, limited: MakeOrder, watched: list[LimitRule]) -> None:
    await spoilt(desk, limited)
    assert (await db(verify)).drift
    await db(drift.check)
    assert (await db(verify)).drift == []
    rounds = await db(
        lambda: {c.name: (c.last_compared, c.last_found, c.checked_at) for c in DriftCheck.objects.all()}
    )
    assert rounds["limits"][0] == len(watched) and rounds["limits"][1] > len(watched) and rounds["limits"][2]
    assert rounds["totals"][:2] == (2, 1 + 5)
    findings = await db(lambda: list(DriftFinding.objects.all()))
    assert all(finding.repaired for finding in findings)
    day = next(f for f in findings if f.rule_id == watched[1].pk and f.name == "used")
    assert (day.said, day.right) == (8, 1)
    await db(drift.check)
    assert {c.last_found for c in await db(lambda: list(DriftCheck.objects.all()))} == {0}


async def test_a_hold_that_no_counter_knows_is_adopted(desk: Desk, limited: MakeOrder, rule: MakeRule) -> None:
    mine = await db(lambda: rule(metric="tokens", per="day", amount=1000))
    order = await db(limited)
    await desk.admit(order)
    await db(lambda: LimitCounter.objects.update(held=0))

    def orphan() -> None:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE ledger_hold SET claims = '{}'")

    await db(orphan)
    await db(drift.check)
    assert (await db(counters))[mine.pk] == (0, 30)
    await desk.settle(order, WHOLE)
    assert (await db(counters))[mine.pk] == (15, 0)
    assert (await db(verify)).drift == []


async def test_what_takes_too_long_to_compare_is_counted_as_skipped(
    desk: Desk, limited: MakeOrder, rule: MakeRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    await db(lambda: rule(metric="tokens", per="day", amount=1000))
    await spoilt(desk, limited)

    def slow() -> None:
        with connection.cursor() as cursor:
            cursor.execute("ALTER FUNCTION ledger_compare_limits(bigint[]) RENAME TO ledger_compare_limits_fast")
            cursor.execute(
                "CREATE FUNCTION ledger_compare_limits(p bigint[]) RETURNS SETOF ledger_drift LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM pg_sleep(5); END $$"
            )

    def fast() -> None:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION ledger_compare_limits(bigint[])")
            cursor.execute("ALTER FUNCTION ledger_compare_limits_fast(bigint[]) RENAME TO ledger_compare_limits")

    monkeypatch.setattr(drift, "STATEMENT_MS", 50)
    await db(slow)
    try:
        await db(drift.check)
    finally:
        await db(fast)
    assert (await db(lambda: DriftCheck.objects.get(name="limits"))).last_skipped == 1


async def test_repair_beside_a_busy_desk_loses_nothing(
    desk: Desk, limited: MakeOrder, watched: list[LimitRule]
) -> None:
    """The difference is added, not the truth written: what the desk books meanwhile stays."""
    orders = await db(lambda: [limited() for _ in range(60)])

    async def traffic() -> None:
        await asyncio.gather(*(settled(desk, order) for order in orders))

    async def repairs() -> None:
        for _ in range(5):
            await db(drift.check)

    await settled(desk, await db(limited))
    await db(lambda: LimitCounter.objects.exclude(slots__isnull=False).update(used=3))
    await asyncio.gather(traffic(), repairs())
    assert (await db(verify)).drift == []


async def test_verify_ledger_says_what_it_compared_and_fails_on_drift(
    desk: Desk, limited: MakeOrder, watched: list[LimitRule]
) -> None:
    await settled(desk, await db(limited))

    def run() -> str:
        out = StringIO()
        call_command("verify_ledger", stdout=out)
        return out.getvalue()

    assert f"compared {len(watched)} counters of limits" in await db(run)
    await db(lambda: LimitCounter.objects.filter(rule_id=watched[1].pk).update(used=5))
    with pytest.raises(CommandError):
        await db(run)
    assert (await db(lambda: LimitCounter.objects.get(rule_id=watched[1].pk))).used == 5  # it only says


# ---- windows and prices of admission ----


async def test_a_settlement_after_midnight_and_a_price_change_is_of_the_window_and_price_of_admission(
    desk: Desk, limited: MakeOrder, rule: MakeRule, chat_model: Model
) -> None:
    tokens = await db(lambda: rule(metric="tokens", per="day", amount=1000))
    spend = await db(lambda: rule(metric="spend", per="day", currency="USD", amount=10**12))
    order = await db(limited)
    await desk.admit(order)
    yesterday = await db(lambda: _a_day_ago(order))
    await db(
        lambda: Price.objects.create(
            model=chat_model,
            side="charge",
            currency="USD",
            input=10**12,
            output=10**12,
            effective_from=timezone.now(),
        )
    )
    await settled(desk, await db(limited))  # today's window, at the new price
    await desk.settle(order, WHOLE)
    rows = await db(lambda: {(c.rule_id, c.window_start): int(c.used) for c in LimitCounter.objects.all()})
    assert rows[tokens.pk, yesterday] == 15
    assert rows[spend.pk, yesterday] == 4_500
    assert sum(rows.values()) == 15 + 4_500 + 15 + 15 * 10**6
    assert (await db(verify)).drift == []


async def test_a_sweep_and_what_comes_later_are_of_the_window_of_admission(
    desk: Desk, limited: MakeOrder, rule: MakeRule
) -> None:
    tokens = await db(lambda: rule(metric="tokens", per="day", amount=1000))
    order = await db(limited)
    await desk.admit(order)
    yesterday = await db(lambda: _a_day_ago(order))
    await settled(desk, await db(limited))
    await db(die)
    rows = await db(lambda: {c.window_start == yesterday: (c.used, c.held) for c in LimitCounter.objects.all()})
    assert rows == {True: (30, 0), False: (15, 0)}
    await desk.settle(order, WHOLE)
    rows = await db(lambda: {c.window_start == yesterday: (c.used, c.held) for c in LimitCounter.objects.all()})
    assert rows == {True: (15, 0), False: (15, 0)}
    assert {c.rule_id for c in await db(lambda: list(LimitCounter.objects.all()))} == {tokens.pk}
    assert (await db(verify)).drift == []


def _a_day_ago(order: Order) -> Any:
    """As if all that happened so far had happened yesterday."""
    day = timedelta(days=1)
    for counter in LimitCounter.objects.filter(window_end__isnull=False):
        counter.window_start, counter.window_end = counter.window_start - day, (counter.window_end or day) - day  # type: ignore[operator]
        counter.save()
        start = counter.window_start
    hold = Hold.objects.get()
    Hold.objects.update(started_at=hold.started_at - day, local_date=hold.local_date - day)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE ledger_hold SET claims = (SELECT array_agg(ARRAY[c.rule, c.owner, c.kind, c.measure,"
            " c.enforce::integer, c.starts - 86400, c.ends - 86400, c.amount, c.ask, c.everybody::integer, c.shard])"
            " FROM ledger_claim_rows(claims) c)"
        )
    order.started_at = (hold.started_at - day).isoformat()
    order.local_date = str(hold.local_date - day)
    return start


async def test_what_all_tenants_share_is_counted_in_one_window(
    desk: Desk, limited: MakeOrder, rule: MakeRule, acme: APIKey, globex: APIKey, chat_model: Model
) -> None:
    """acme's days are Tokyo's, globex's UTC's."""
    mine = await db(lambda: rule(model=chat_model, metric="requests", per="day", amount=100))
    await settled(desk, await db(limited))
    await settled(desk, await db(lambda: limited(globex)))
    assert await db(counters) == {mine.pk: (2, 0)}
    assert await db(lambda: LimitCounter.objects.get().window_start.hour) == 0


async def test_a_limit_for_everybody_that_is_made_under_load_misses_nothing(
    desk: Desk, limited: MakeOrder, rule: MakeRule, globex: APIKey, chat_model: Model
) -> None:
    """Another tenant's requests are admitted and settled by another desk while the counter is made."""

    async def at_once(where: Desk, order: Order) -> None:
        if (await where.admit(order))[0] == "ok":  # else it was asked for too late, with rules of before
            await where.settle(order, WHOLE)

    other = Desk()
    try:
        mine, theirs = await db(lambda: ([limited() for _ in range(40)], [limited(globex) for _ in range(40)]))
        running = asyncio.gather(*(at_once(other, order) for order in theirs))
        await asyncio.gather(*(settled(desk, order) for order in mine[:20]))
        everybody = await db(lambda: rule(model=chat_model, metric="tokens", per="day", amount=10**9))
        late = await db(lambda: [limited() for _ in range(20)])
        await asyncio.gather(*(settled(desk, order) for order in late))
        await running
        fresh = await db(lambda: limited(globex))
        await settled(other, fresh)
    finally:
        await db(lambda: other.stop(5))
    assert (await db(counters))[everybody.pk] == (15 * await db(UsageRecord.objects.count), 0)
    assert (await db(verify)).drift == []
