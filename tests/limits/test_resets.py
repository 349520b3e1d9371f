"""Windows follow the clock and credit its end, whether or not a worker runs: none does here."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from gateway.ledger.desk import Desk
from gateway.ledger.items import Order
from gateway.ledger.models import Hold
from gateway.ledger.verification import verify
from gateway.limits import housekeeping
from gateway.limits.facts import load_rules
from gateway.limits.models import Credit, LimitCounter, LimitRule
from tests.limits.test_decisions import WHOLE, MakeOrder, MakeRule, db

CHARGE = 4_500  # of one settled request
HELD = 1_500 + 12_000 + 3  # by one


@pytest.fixture
def prepaid(rule: MakeRule) -> Callable[..., LimitRule]:
    """A prepaid limit with credits of (amount, expires in)."""

    def make(*credits: tuple[int, timedelta | None]) -> LimitRule:
        mine = rule(metric="spend", per="total", currency="USD", amount=0)
        for amount, ends in credits:
            mine.credits.create(amount=amount, expires_at=timezone.now() + ends if ends is not None else None)
        return mine

    return make


def aged(hours: int) -> None:
    """As if all credits were made and would end so much earlier, and all requests had started then."""
    ago = timedelta(hours=hours)
    for credit in Credit.objects.all():
        ends = credit.expires_at - ago if credit.expires_at else None
        Credit.objects.filter(pk=credit.pk).update(created_at=credit.created_at - ago, expires_at=ends)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE ledger_usagerecord DISABLE TRIGGER append_only_rows")
        cursor.execute("UPDATE ledger_usagerecord SET started_at = started_at - %s", [ago])
        cursor.execute("ALTER TABLE ledger_usagerecord ENABLE TRIGGER append_only_rows")
        cursor.execute("UPDATE ledger_hold SET started_at = started_at - %s", [ago])


async def spend(desk: Desk, limited: MakeOrder, times: int) -> list[str]:
    """Verdicts, asking again when the facts were stale, as the pipeline does."""
    verdicts = []
    for _ in range(times):
        order: Order = await db(limited)
        verdict, _ = await desk.admit(order)
        if verdict == "stale":
            order = await db(limited)
            verdict, _ = await desk.admit(order)
        if verdict == "ok":
            await desk.settle(order, WHOLE)
        verdicts.append(verdict)
    return verdicts


async def test_a_window_begins_without_any_worker(desk: Desk, limited: MakeOrder, rule: MakeRule) -> None:
    mine = await db(lambda: rule(metric="requests", per="day", amount=2))
    assert await spend(desk, limited, 3) == ["ok", "ok", "limited"]

    def midnight() -> None:
        day = timedelta(days=1)
        counter = LimitCounter.objects.get(rule_id=mine.pk)
        assert counter.window_end is not None
        counter.window_start, counter.window_end = counter.window_start - day, counter.window_end - day
        counter.save()
        aged(24)

    await db(midnight)
    assert await spend(desk, limited, 3) == ["ok", "ok", "limited"]
    assert (await db(verify)).drift == []


async def test_a_window_that_was_opened_ahead_is_the_one_that_is_used(
    desk: Desk, limited: MakeOrder, rule: MakeRule
) -> None:
    mine = await db(lambda: rule(metric="requests", per="day", amount=2))
    await spend(desk, limited, 1)
    end: datetime = await db(lambda: LimitCounter.objects.get(rule_id=mine.pk).window_end)
    assert await db(lambda: housekeeping.open_windows(now=end - timedelta(minutes=1))) == 1
    assert (await db(verify)).drift == []
    assert await db(lambda: LimitCounter.objects.filter(window_start=end, used=0).count()) == 1


async def test_credit_that_expires_takes_only_what_was_unused(
    desk: Desk, limited: MakeOrder, prepaid: Callable[..., LimitRule]
) -> None:
    """10 paid, 3 used, 7 gone: the next top-up is all there."""
    mine = await db(lambda: prepaid((10 * HELD, timedelta(hours=1))))
    assert await spend(desk, limited, 3) == ["ok"] * 3
    await db(lambda: aged(2))
    assert await spend(desk, limited, 1) == ["limited"]
    first = await db(lambda: Credit.objects.get())
    assert (first.expired_amount, bool(first.closed_at)) == (10 * HELD - 3 * CHARGE, True)
    await db(lambda: mine.credits.create(amount=2 * CHARGE + HELD))
    assert await spend(desk, limited, 4) == ["ok", "ok", "ok", "limited"]
    assert (await db(verify)).drift == []


async def test_a_top_up_is_not_eaten_by_what_expired_credit_had_paid(
    desk: Desk, limited: MakeOrder, prepaid: Callable[..., LimitRule]
) -> None:
    """No worker has closed the expired credit: the desk does, before it would refuse for it."""
    mine = await db(lambda: prepaid((3 * CHARGE + HELD, timedelta(hours=1))))
    assert await spend(desk, limited, 3) == ["ok"] * 3
    await db(lambda: aged(2))
    await db(lambda: mine.credits.create(amount=HELD))
    assert await spend(desk, limited, 2) == ["ok", "limited"]


async def test_what_expires_first_is_used_first(
    desk: Desk, limited: MakeOrder, prepaid: Callable[..., LimitRule]
) -> None:
    await db(lambda: prepaid((100 * HELD, None), (10 * HELD, timedelta(hours=2)), (CHARGE, timedelta(hours=1))))
    await spend(desk, limited, 3)
    await db(lambda: aged(3))
    assert [await db(housekeeping.close_credits), await db(housekeeping.close_credits)] == [2, 0]
    unused = await db(lambda: [c.expired_amount for c in Credit.objects.order_by("pk")])
    assert unused == [0, 10 * HELD - 2 * CHARGE, 0]
    (rule,) = await db(lambda: [r for r in load_rules(*_ids()) if r.metric == "spend"])
    assert rule.amount_at(timezone.now()) == 100 * HELD + 3 * CHARGE


async def test_what_runs_when_credit_expires_counts_as_used(
    desk: Desk, limited: MakeOrder, prepaid: Callable[..., LimitRule]
) -> None:
    await db(lambda: prepaid((10 * HELD, timedelta(hours=1))))
    await desk.admit(await db(limited))
    await db(lambda: aged(2))
    await db(housekeeping.close_credits)
    assert (await db(Credit.objects.get)).expired_amount == 9 * HELD
    assert await db(Hold.objects.count) == 1


def _ids() -> tuple[Any, Any]:
    rule = LimitRule.objects.get()
    assert rule.tenant is not None
    return rule.tenant_id, rule.tenant.keys.get().pk
