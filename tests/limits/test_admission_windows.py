"""What comes late is of the window and price of admission; what all tenants share is counted in one window."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from django.db import connection
from django.utils import timezone

from gateway.catalogue.models import Model, Price
from gateway.ledger.desk import Desk
from gateway.ledger.items import Order
from gateway.ledger.models import Hold, UsageRecord
from gateway.ledger.verification import verify
from gateway.limits.models import LimitCounter
from tenants.models import APIKey
from tests.limits.test_decisions import WHOLE, MakeOrder, MakeRule, db
from tests.limits.test_drift import counters, die, settled


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
