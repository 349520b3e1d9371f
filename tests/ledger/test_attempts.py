"""What was tried is in the books once, with the record; what the client got is what is charged."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from asgiref.sync import sync_to_async
from django.db import connection

from gateway.catalogue.pricing import Rates, amount
from gateway.ledger import sweeper
from gateway.ledger.desk import Desk
from gateway.ledger.items import Attempt as Tried
from gateway.ledger.items import Ending, Order
from gateway.ledger.models import Adjustment, Attempt, Hold, Process, UsageRecord
from gateway.ledger.verification import verify
from gateway.upstreams.base import Usage
from tenants.models import APIKey
from tests.ledger.looking import WHOLE, MakeOrder, db

EURO = Rates(77, "EUR", datetime(2026, 1, 1, tzinfo=UTC), 1000, 1000, 1000, 2000, 2000, 0)


def tried(order: Order, number: int, outcome: str, **facts: object) -> Tried:
    made = Tried(
        number=number,
        deployment_id=order.deployment_id,
        provider_id=order.provider_id,
        model="acme-chat",
        started_ms=100 * number,
        first_byte_ms=None,
        ended_ms=100 * number + 90,
        outcome=outcome,
    )
    return replace(made, **facts)  # type: ignore[arg-type]


def fallen_back(order: Order) -> Ending:
    """The second deployment served, at a provider that asks euros."""
    first = tried(order, 1, "status_503", http_status=503, cost_rates=order.cost_rates)
    last = tried(order, 2, "ok", http_status=200, first_byte_ms=250, provider_id=4242, cost_rates=EURO)
    order.provider_id, order.cost_rates = 4242, EURO
    return replace(WHOLE, attempts=(first, replace(last, usage=WHOLE.usage)))


async def attempts() -> list[Attempt]:
    return await db(lambda: list(Attempt.objects.order_by("request_id", "number")))


async def test_it_keeps_each_attempt_with_the_record(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    await desk.admit(mine)
    await desk.settle(mine, fallen_back(mine))
    failed, served = await attempts()
    record = await db(UsageRecord.objects.get)
    assert (failed.outcome, failed.http_status, failed.cost, failed.served) == ("status_503", 503, 0, False)
    assert failed.tenant_id == mine.caller.tenant_id and failed.first_byte_at is None
    assert failed.started_at == record.started_at + timedelta(milliseconds=100)
    assert served.first_byte_at == record.started_at + timedelta(milliseconds=250)
    assert served.ended_at == record.started_at + timedelta(milliseconds=290)
    assert (served.outcome, served.served, served.input_tokens, served.output_tokens) == ("ok", True, 1000, 500)
    assert (served.cost, served.cost_currency, served.cost_price_id) == (record.cost, "EUR", 77)
    assert record.cost == amount(1000, 1000) + amount(500, 2000)
    assert (record.provider_id, record.cost_currency, record.cost_price_id) == (4242, "EUR", 77)
    assert record.charge == 450_000  # the tenant's price is what it was
    assert sum(int(line[4]) for line in record.lines if line[0] == "cost") == record.cost


async def test_a_plain_request_leaves_no_attempts(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    await desk.admit(mine)
    await desk.settle(mine, WHOLE)
    assert await attempts() == []
    assert (await db(UsageRecord.objects.get)).served_model == ""


async def test_what_a_failed_attempt_used_is_its_own_cost(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    await desk.admit(mine)
    usage = Usage(input_tokens=10, output_tokens=1)
    ending = fallen_back(mine)
    priced = replace(ending.attempts[0], usage=usage, cost_rates=EURO)
    unpriced = replace(priced, number=3, cost_rates=None)
    served = replace(ending.attempts[1], number=4)
    await desk.settle(mine, replace(ending, attempts=(priced, unpriced, served)))
    assert [a.cost for a in await attempts()] == [amount(10, 1000) + amount(1, 2000), None, 2]
    assert (await db(UsageRecord.objects.get)).cost == 2


async def test_a_failed_request_has_attempts_and_costs_nothing(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    await desk.admit(mine)
    ending = Ending("failed", Usage(), 502, "upstream_error", attempts=(tried(mine, 1, "connect"),))
    await desk.settle(mine, ending)
    (only,) = await attempts()
    assert (only.outcome, only.served, only.cost) == ("connect", False, 0)
    assert (await db(UsageRecord.objects.get)).charge == 0


async def test_it_keeps_them_once(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    await desk.admit(mine)
    ending = fallen_back(mine)
    await desk.settle(mine, ending)
    await desk.settle(mine, replace(ending, attempts=(*ending.attempts, tried(mine, 3, "ok"))))
    assert [a.number for a in await attempts()] == [1, 2]
    await desk.settle(mine, WHOLE)
    assert [a.number for a in await attempts()] == [1, 2]


async def test_a_batch_that_is_sent_again_keeps_them_once(desk: Desk, order: MakeOrder) -> None:
    orders = await db(lambda: [order() for _ in range(3)])
    await asyncio.gather(*(desk.admit(o) for o in orders))
    items = [o.settlement(fallen_back(o)) for o in orders]
    for retry in (False, True):
        await sync_to_async(_call)(desk, items, retry)
    assert [a.number for a in await attempts()] == [1, 2] * 3
    assert (await db(verify)).drift == []


def _call(desk: Desk, items: list[dict[str, object]], retry: bool) -> None:
    import orjson

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT ledger_desk(%s, %s, false, %s)",
            [desk.writer.link.process_id, orjson.dumps(items).decode(), retry],
        )


async def test_a_late_settlement_keeps_them_too_and_once(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    mine.served_model = "acme-small"
    await desk.admit(mine)
    await db(_die)
    assert await db(lambda: sweeper.sweep(lease_seconds=0)) in (0, 1)
    assert await db(lambda: sweeper.sweep(lease_seconds=0)) in (0, 1)
    assert (await db(UsageRecord.objects.get)).served_model == "acme-small"
    ending = fallen_back(mine)
    await desk.settle(mine, ending)
    await desk.settle(mine, ending)
    assert [a.number for a in await attempts()] == [1, 2]
    assert await db(Adjustment.objects.count) == 1
    assert (await db(verify)).drift == []


def _die() -> None:
    assert Hold.objects.count() == 1
    Process.objects.update(ended_at=datetime(2026, 1, 1, tzinfo=UTC))


async def test_a_released_request_has_none(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    await desk.admit(mine)
    await sync_to_async(_call)(desk, [mine.release()], False)
    assert await attempts() == []


async def test_it_says_which_model_served(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    await desk.admit(mine)
    mine.served_model = "acme-small"
    mine.charge_rates = replace(EURO, currency="USD")
    await desk.settle(mine, WHOLE)
    record = await db(UsageRecord.objects.get)
    assert (record.model, record.served_model, record.charge_price_id) == ("acme-chat", "acme-small", 77)
    assert (record.charge, record.charge_currency) == (2, "USD")


async def test_it_holds_at_the_dearest_price(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    assert mine.charge_rates is not None
    mine.hold_rates = replace(mine.charge_rates, output=10 * mine.charge_rates.output)
    await desk.admit(mine)
    assert (await db(Hold.objects.get)).amount == 150_000 + 12_000_000 + 3


async def test_a_price_that_stands_ready_may_no_longer_be_changed(desk: Desk, order: MakeOrder) -> None:
    from gateway.catalogue.models import Price

    mine = await db(order)
    other = await db(lambda: Price.objects.get(side="cost"))
    mine.cost_rates, mine.other_rates = None, (replace(EURO, price_id=other.pk),)
    await desk.admit(mine)
    assert (await db(lambda: Price.objects.get(pk=other.pk))).first_used_at is not None


async def test_attempts_of_a_tenant_are_its_own(desk: Desk, order: MakeOrder, acme: APIKey, globex: APIKey) -> None:
    for key in (acme, globex):
        mine = await db(order, key)
        await desk.admit(mine)
        await desk.settle(mine, fallen_back(mine))
    for key in (acme, globex):
        found = await db(lambda key=key: {a.tenant_id for a in Attempt.objects.for_tenant(key.tenant)})
        assert found == {key.tenant_id}


@pytest.mark.parametrize("wrong", [{"number": 0}, {"usage": Usage(output_tokens=-1)}])
async def test_a_bad_attempt_harms_nobody_else(desk: Desk, order: MakeOrder, wrong: dict[str, object]) -> None:
    orders = await db(lambda: [order() for _ in range(5)])
    await asyncio.gather(*(desk.admit(o) for o in orders))
    endings = [fallen_back(o) for o in orders]
    bad = replace(endings[2].attempts[0], **wrong)  # type: ignore[arg-type]
    endings[2] = replace(endings[2], attempts=(bad, endings[2].attempts[1]))
    outcomes = await asyncio.gather(
        *(desk.settle(o, e) for o, e in zip(orders, endings, strict=True)), return_exceptions=True
    )
    assert [isinstance(o, Exception) for o in outcomes] == [n == 2 for n in range(5)]
    assert await db(Attempt.objects.count) == 8
