"""When counters and ledger do not agree, it is found, repaired and told."""

from __future__ import annotations

import asyncio
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from gateway.ledger import drift
from gateway.ledger.desk import Desk
from gateway.ledger.items import Ending, Order
from gateway.ledger.models import Counter, DriftCheck, DriftFinding, Process
from gateway.ledger.sweeper import sweep
from gateway.ledger.verification import verify
from gateway.limits.models import LimitCounter, LimitRule
from gateway.upstreams.base import Usage
from tests.limits.test_decisions import WHOLE, MakeOrder, MakeRule, db

FAILED = Ending("failed", Usage(), 502, "upstream_error")
CLASSES = Ending("completed", Usage(10, 3, 2, 5, 7))  # input, cached, cache write, output, reasoning


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
                " $$ BEGIN PERFORM pg_sleep(60); END $$"
            )

    def fast() -> None:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION ledger_compare_limits(bigint[])")
            cursor.execute("ALTER FUNCTION ledger_compare_limits_fast(bigint[]) RENAME TO ledger_compare_limits")

    monkeypatch.setattr(drift, "STATEMENT_MS", 1000)  # enough for all else
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
