"""Requests that outlive their window: across midnight, on days of a clock change, a price change and a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db.models import Min

from gateway.catalogue.models import Model, Price
from gateway.ledger.desk import Desk
from gateway.ledger.models import UsageRecord
from gateway.ledger.sweeper import LEASE_SECONDS, sweep
from gateway.limits.models import LimitCounter, LimitRule
from gateway.limits.windows import Window, window_at
from tenants.models import APIKey, Tenant
from tests.limits.clock import Clock, clock  # noqa: F401
from tests.limits.desk_process import TOKENS, USAGE
from tests.limits.test_clocks import Client, buried, no_drift
from tests.limits.test_decisions import MakeRule, db

SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
CHARGE = (USAGE["input"] + 4 * USAGE["output"]) * 150
# Days of a clock change: one hour less, one more; at midnight, which then does not exist or comes twice.
DAYS = [
    ("Europe/Berlin", date(2027, 3, 28), 23),
    ("Europe/Berlin", date(2029, 10, 28), 25),
    ("America/Santiago", date(2027, 9, 5), 23),
    ("America/Havana", date(2027, 11, 7), 25),
    ("America/Sao_Paulo", date(2027, 11, 7), 24),
]


@dataclass
class House:
    client: Client
    day: LimitRule
    fiscal: LimitRule
    flight: LimitRule
    model: Model
    window: Window  # of the day of the clock change

    async def at(self, instant: datetime) -> None:
        await db(lambda: self.client.clock.set(instant))
        await self.client.beat()

    async def counter(self, rule: LimitRule, starts: datetime) -> tuple[int, int]:
        row: LimitCounter = await db(lambda: LimitCounter.objects.get(rule_id=rule.pk, window_start=starts))
        return int(row.used), int(row.held)


@pytest.fixture(params=DAYS, ids=lambda p: f"{p[0]} {p[1]}")
def house(
    clock: Clock,  # noqa: F811
    chat_model: Model,
    acme: APIKey,
    rule: MakeRule,
    desk: Desk,
    request: pytest.FixtureRequest,
) -> House:
    zone, day, hours = request.param
    Tenant.objects.filter(pk=acme.tenant_id).update(timezone=zone)
    window = window_at("day", datetime.combine(day, datetime.min.time(), ZoneInfo(zone)) + DAY / 2, ZoneInfo(zone))
    assert window.end is not None
    assert window.end - window.start == timedelta(hours=hours)
    return House(
        Client(desk, acme, clock),
        rule(metric="tokens", per="day", amount=10**6),
        rule(metric="spend", per="fiscal_month", fiscal_day=day.day, currency="USD", amount=10**9, hold="hard"),
        rule(metric="in_flight", per="", amount=10),
        chat_model,
        window,
    )


def dearer(model: Model, since: datetime) -> None:
    """Twice as dear."""
    Price.objects.create(
        model=model, side="charge", currency="USD", input=300_000_000, output=1_200_000_000, effective_from=since
    )


async def test_what_outlives_its_window_goes_to_the_one_that_it_was_admitted_in(house: House) -> None:
    client, midnight = house.client, house.window.start
    await house.at(midnight - 9 * SECOND)
    late, dead = await client.admit(), await client.admit()
    await db(lambda: buried(dead, client.clock.now()))
    await db(lambda: dearer(house.model, midnight))
    await house.at(midnight + 9 * SECOND)
    client.lane.facts = None
    fresh = await client.admit()
    await client.settle(late)
    await client.settle(fresh)
    for _ in range(3):
        await db(sweep)
        await client.step(seconds=LEASE_SECONDS + 1)
    rows: dict[Any, Any] = await db(lambda: {r.request_id: r for r in UsageRecord.objects.all()})
    assert (rows[late.request_id].charge, rows[fresh.request_id].charge) == (CHARGE, 2 * CHARGE)
    assert (rows[dead.request_id].status, rows[dead.request_id].charge) == ("unknown", 0)
    local = midnight.astimezone(ZoneInfo(late.caller.timezone)).date()
    dates = [rows[order.request_id].local_date for order in (late, dead, fresh)]
    assert dates == [local - DAY, local - DAY, local]
    yesterday: datetime = await db(
        lambda: LimitCounter.objects.filter(rule_id=house.day.pk).aggregate(first=Min("window_start"))["first"]
    )
    assert yesterday < midnight
    estimated = dead.input_tokens + dead.output_tokens
    assert await house.counter(house.day, yesterday) == (TOKENS + estimated, 0)
    assert await house.counter(house.day, midnight) == (TOKENS, 0)
    spent = await db(
        lambda: dict(LimitCounter.objects.filter(rule_id=house.fiscal.pk).values_list("window_start", "used"))
    )
    assert [spent[starts] for starts in sorted(spent)] == [CHARGE, 2 * CHARGE]
    assert max(spent) == midnight
    await no_drift()
    # It was alive after all: what it really used comes by an adjustment, to the window it was admitted in.
    await client.settle(dead)
    assert await house.counter(house.day, yesterday) == (2 * TOKENS, 0)
    spent = await db(
        lambda: dict(LimitCounter.objects.filter(rule_id=house.fiscal.pk).values_list("window_start", "used"))
    )
    assert [spent[starts] for starts in sorted(spent)] == [2 * CHARGE, 2 * CHARGE]
    await no_drift()


async def test_a_day_of_a_clock_change_ends_when_it_ends(house: House, rule: MakeRule) -> None:
    client, start, end = house.client, house.window.start, house.window.end
    assert end is not None
    mine = await db(lambda: rule(metric="requests", per="day", amount=3))
    for instant, admitted in ((start, 1), (start + (end - start) / 2, 1), (end - 5 * SECOND, 1), (end, 3)):
        await house.at(instant)
        assert await client.ask(4 if admitted == 3 else admitted) == admitted
    counters = await db(lambda: LimitCounter.objects.filter(rule_id=mine.pk).order_by("window_start"))
    windows = await db(lambda: [(c.window_start, c.window_end, c.used) for c in counters])
    assert windows == [(start, end, 3), (end, end + DAY, 3)]
    await no_drift()
