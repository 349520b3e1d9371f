"""Refusals and admissions that can be explained later: what is kept of them, and what is not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection

from gateway.identifiers import uuid7
from gateway.ledger.desk import Desk
from gateway.ledger.items import Ending, Order
from gateway.limits import refusals_log
from gateway.limits.models import LimitRule
from gateway.limits.refusals_log import PER_SECOND, Refusal, Sampler, tidy
from gateway.upstreams.base import Usage
from tenants.models import APIKey
from tests.limits.test_decisions import db

MakeOrder = Callable[..., Order]
MakeRule = Callable[..., LimitRule]
WHOLE = Ending("completed", Usage(input_tokens=10, output_tokens=5))


def decided(table: str) -> list[list[list[int]]]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT decided FROM {table} ORDER BY request_id")
        return [[[int(n) for n in row] for row in rows] for (rows,) in cursor.fetchall()]


async def test_it_keeps_what_a_refusal_was_decided_on(desk: Desk, limited: MakeOrder, rule: MakeRule) -> None:
    wide = await db(lambda: rule(metric="requests", per="day", amount=100))
    tight = await db(lambda: rule(metric="tokens", per="day", amount=30))
    first, second = await db(lambda: [limited(), limited()])
    await desk.admit(first)
    assert (await desk.admit(second))[0] == "limited"
    refusal = await db(Refusal.objects.get)
    assert (refusal.request_id, refusal.rule_id, refusal.stands_for) == (second.request_id, tight.pk, 1)
    assert (refusal.input_tokens, refusal.output_tokens, refusal.model) == (10, 20, "acme-chat")
    # [rule, owner, kind, measure, enforce, starts, ends, amount, ask, used, held]
    rows = {int(row[0]): [int(n) for n in row] for row in refusal.decided}
    assert rows[wide.pk][7:] == [100, 1, 0, 1]
    assert rows[tight.pk][2:5] == [ord("c"), ord("b"), 1]
    assert rows[tight.pk][7:] == [30, 30, 0, 30]


async def test_a_record_keeps_what_its_admission_was_decided_on(
    desk: Desk, limited: MakeOrder, rule: MakeRule
) -> None:
    mine = await db(lambda: rule(metric="tokens", per="day", amount=100))
    orders = await db(lambda: [limited() for _ in range(3)])
    await asyncio.gather(*(desk.admit(o) for o in orders))
    held = await db(decided, "ledger_hold")
    assert sorted(row[10] for (row,) in held) == [0, 30, 60]  # one after the other
    await asyncio.gather(*(desk.settle(o, WHOLE) for o in orders))
    assert await db(decided, "ledger_usagerecord") == held
    assert {row[0] for (row,) in held} == {mine.pk}


async def test_a_flood_of_one_key_is_kept_in_part_and_counted(
    desk: Desk, limited: MakeOrder, rule: MakeRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals_log, "time", SimpleNamespace(monotonic=lambda: 100.5))  # all in one second
    await db(lambda: rule(metric="requests", per="day", amount=0))
    orders = await db(lambda: [limited() for _ in range(40)])
    await asyncio.gather(*(desk.admit(o) for o in orders))
    batches = desk.writer.batches
    assert await db(Refusal.objects.count) <= 3 * batches
    for o in await db(lambda: [limited() for _ in range(20)]):
        await desk.admit(o)
    assert await db(Refusal.objects.count) <= 3 * batches + PER_SECOND


def test_the_sampler_keeps_a_few_a_second_and_counts_the_rest() -> None:
    sampler = Sampler()
    weights = []
    for _ in range(10):
        weights.append(weight := sampler.weight(7, now=100.5))
        sampler.refused(7, kept=weight is not None, now=100.5)
    assert weights == [1, 1, 1, *[None] * 7]
    assert sampler.weight(7, now=101.0) == 8
    assert sampler.weight(8, now=100.5) == 1


def test_what_was_not_kept_goes_with_one_request_alone() -> None:
    sampler = Sampler()
    for kept in (True, True, True, False, False):
        sampler.weight(7, now=100.5)
        sampler.refused(7, kept=kept, now=100.5)
    assert [sampler.weight(7, now=101.0) for _ in range(3)] == [3, 1, 1]  # at once, before any is answered
    sampler.spare(7, 3)  # the first is admitted
    assert sampler.weight(7, now=101.0) == 3


async def test_a_flood_at_once_stands_for_exactly_so_many(desk: Desk, limited: MakeOrder, rule: MakeRule) -> None:
    await db(lambda: rule(metric="requests", per="day", amount=0))
    for _ in range(3):
        orders = await db(lambda: [limited() for _ in range(30)])
        assert {verdict for verdict, _ in await asyncio.gather(*map(desk.admit, orders))} == {"limited"}
    await asyncio.sleep(1.1)  # what this second's quota has left out goes with the next that is kept
    await desk.admit(await db(limited))
    assert await db(lambda: sum(Refusal.objects.values_list("stands_for", flat=True))) == 91


async def test_a_lowered_request_that_is_admitted_says_so(desk: Desk, limited: MakeOrder, rule: MakeRule) -> None:
    await db(lambda: rule(metric="tokens", per="day", amount=25, hold="hard"))
    mine = await db(limited)
    assert (await desk.admit(mine))[0] == "limited"
    smaller = await db(lambda: limited(tokens=(10, 15)))
    smaller.request_id, smaller.lowered = mine.request_id, 15
    assert (await desk.admit(smaller))[0] == "ok"
    assert (await db(Refusal.objects.get)).lowered_to == 15


def test_early_refusals_are_kept_three_a_key_and_batch(acme: APIKey, globex: APIKey) -> None:
    """As the desk calls it, with the checks that it found to be on fresh facts."""
    old = refusal(acme, datetime.now(UTC))

    def check(key: APIKey, keep: int | None = 1, **more: Any) -> dict[str, Any]:
        facts = {"request_id": str(uuid7()), "tenant_id": key.tenant_id, "key_id": key.pk, "model": "acme-chat"}
        why = {"reason": "no_price", "input_tokens": 1, "output_tokens": 2, "decided": [[7, *[1] * 10]]}
        return {"op": "c", "keep": keep, **facts, **why, **more}

    ids = sorted(str(uuid7()) for _ in range(5))
    flood = [check(acme, keep=4 if i == ids[0] else 1, request_id=i) for i in ids]
    beside = check(globex, reason="model_not_found", decided=None)
    others = [check(globex, None), check(globex, op="a"), check(globex, request_id=str(old.pk))]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT ledger_keep_early_refusals(array_agg(i), now())"
            " FROM json_populate_recordset(NULL::ledger_item, %s) i",
            [json.dumps([*flood, beside, *others])],
        )
    kept = {str(r.pk): r for r in Refusal.objects.all()}
    assert set(kept) == {str(old.pk), beside["request_id"], *(item["request_id"] for item in flood[:3])}
    assert [kept[item["request_id"]].stands_for for item in flood[:3]] == [6, 1, 1]
    assert {(r.rule_id, r.reason) for r in kept.values()} == {(1, ""), (0, "model_not_found"), (7, "no_price")}
    assert kept[beside["request_id"]].decided == []


def refusal(key: APIKey, at: datetime) -> Refusal:
    return Refusal.objects.create(
        request_id=uuid7(),
        tenant=key.tenant,
        key=key,
        model="acme-chat",
        rule_id=1,
        at=at,
        input_tokens=1,
        output_tokens=1,
        decided=[[1] * 11],
    )


def test_it_tidies_by_age_and_by_number_per_key(acme: APIKey, globex: APIKey) -> None:
    now = datetime.now(UTC)
    old = refusal(acme, now - timedelta(days=31))
    # Ids of one millisecond have no order of their own.
    mine = sorted((refusal(acme, now) for _ in range(4)), key=lambda kept: kept.pk)
    theirs = refusal(globex, now)
    assert tidy(now=now, per_key=3) == 2
    left = set(Refusal.objects.values_list("pk", flat=True))
    assert left == {*(r.pk for r in mine[1:]), theirs.pk}
    assert old.pk not in left
    assert set(Refusal.objects.for_tenant(globex.tenant)) == {theirs}


@pytest.fixture(autouse=True)
def _cast(globex: Any) -> None:
    """The neighbour is there."""
