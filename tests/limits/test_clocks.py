"""The database's clock is stepped, and the processes' clocks are wrong: limits stay exact, and nothing drifts."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from gateway import clock as processes_clock
from gateway.identifiers import uuid7
from gateway.ledger.desk import Desk
from gateway.ledger.models import Hold, Process, UsageRecord
from gateway.ledger.sweeper import LEASE_SECONDS, sweep
from gateway.ledger.verification import verify
from gateway.limits.models import LimitCounter, LimitRule
from gateway.limits.windows import window_at
from tenants.models import APIKey
from tests.limits.clock import Clock, clock  # noqa: F401
from tests.limits.desk_process import TOKENS, Lane, be_hot, facts
from tests.limits.test_decisions import MakeRule, db

MINUTE = 61  # seconds after which a sliding minute has forgotten


class Client:
    """Requests of one key, one at a time, as the pipeline makes them."""

    def __init__(self, desk: Desk, key: APIKey, clock: Clock) -> None:  # noqa: F811
        self.desk, self.clock = desk, clock
        self.lane = Lane(desk, key.public_id, {"cap": 100}, {})

    async def step(self, **by: float) -> None:
        """The database's clock steps; this process hears of it with its next heartbeat."""
        await db(lambda: self.clock.step(**by))
        await self.beat()

    async def beat(self) -> None:
        self.desk.writer._next_beat = 0
        _, caller, _ = await db(facts, self.lane.key)
        await self.desk.check(caller, 0, uuid7())  # what is asked after a beat is answered after it

    async def admit(self) -> Any:
        return await self.lane.admit()

    async def settle(self, order: Any) -> None:
        await self.lane.settle(order)

    async def ask(self, times: int) -> int:
        """How many were admitted; they have ended."""
        admitted = 0
        for _ in range(times):
            order = await self.admit()
            if order is not None:
                await self.settle(order)
                admitted += 1
        return admitted


@pytest.fixture
def client(clock: Clock, chat_model: Any, acme: APIKey, desk: Desk) -> Client:  # noqa: F811
    return Client(desk, acme, clock)


async def no_drift() -> None:
    assert (await db(verify)).drift == []


@pytest.mark.parametrize("back", [2, 60, 61, 3_600])
@pytest.mark.parametrize(("before", "hot"), [(2, False), (5, False), (3, True)])
async def test_a_clock_that_steps_back_lets_nothing_more_through_and_blocks_nobody_for_long(
    client: Client,
    rule: MakeRule,
    back: int,
    before: int,
    hot: bool,
) -> None:
    """Five a minute, whether the minute was full when the clock stepped or not, in one row or in several."""
    await db(lambda: rule(metric="requests", per="minute", amount=5))
    assert await client.ask(1) == 1
    if hot:
        be_hot(client.desk.writer.heat)
    assert await client.ask(before - 1) == before - 1
    await client.step(seconds=-back)
    assert await client.ask(6) == 5 - before
    await no_drift()
    await client.step(seconds=MINUTE + min(back, 60))
    assert await client.ask(6) == 5
    await no_drift()


@pytest.mark.parametrize("back", [30, 3_600])
async def test_tokens_are_trued_up_across_a_step_back(
    client: Client,
    rule: MakeRule,
    back: int,
) -> None:
    mine = await db(lambda: rule(metric="tokens", per="minute", amount=10_000))
    running = await client.admit()
    await client.step(seconds=-back)
    await client.settle(running)
    assert await client.ask(1) == 1
    await no_drift()
    await client.step(seconds=MINUTE + 60)
    assert await client.ask(1) == 1
    slots = (await db(lambda: LimitCounter.objects.get(rule_id=mine.pk))).slots
    assert sum(slots) == TOKENS
    await no_drift()


async def test_what_a_refusal_says_to_wait_is_right_after_a_step_back(client: Client, rule: MakeRule) -> None:
    await db(lambda: rule(metric="requests", per="minute", amount=2))
    assert await client.ask(2) == 2
    await client.step(hours=-1)
    assert await client.ask(1) == 0
    (state,) = client.lane.states
    assert 0 < state["wait_ms"] <= MINUTE * 1000
    await client.step(milliseconds=state["wait_ms"])
    assert await client.ask(1) == 1


@pytest.mark.parametrize("step", [30, 90_000, -30, -90_000])
async def test_windows_stay_true_to_the_ledger_when_the_clock_steps(
    client: Client,
    rule: MakeRule,
    step: int,
) -> None:
    rules = [
        await db(lambda fields=fields: rule(**fields))
        for fields in (
            {"metric": "requests", "per": "day", "amount": 100},
            {"metric": "tokens", "per": "minute", "amount": 10**6},
            {"metric": "in_flight", "per": "", "amount": 10},
            {"metric": "spend", "per": "month", "currency": "USD", "amount": 10**9, "hold": "hard"},
        )
    ]
    await client.ask(3)
    running = [await client.admit(), await client.admit()]
    await client.step(seconds=step)
    assert await client.ask(3) == 3
    await no_drift()
    for order in running:
        await client.settle(order)
    await no_drift()
    assert await db(Hold.objects.count) == 0
    daily: list[LimitCounter] = await db(lambda: list(LimitCounter.objects.filter(rule_id=rules[0].pk)))
    assert sum(counter.used for counter in daily) == await db(UsageRecord.objects.count) == 8
    for counter in daily:
        started = {"started_at__gte": counter.window_start, "started_at__lt": counter.window_end}
        assert counter.used == await db(lambda started=started: UsageRecord.objects.filter(**started).count())


@pytest.mark.parametrize("hours", [1, -1])
async def test_the_sweeper_takes_the_dead_and_only_those_when_the_clock_steps(
    client: Client, rule: MakeRule, hours: int
) -> None:
    flight = await db(lambda: rule(metric="in_flight", per="", amount=10))
    running = await client.admit()
    dead = await client.admit()
    await db(lambda: buried(dead, client.clock.now()))
    await client.step(hours=hours)
    looks = [0]
    for _ in range(4):
        await client.ask(1)
        looks.append(await db(sweep))
        await client.step(seconds=LEASE_SECONDS + 1)
    assert sum(looks) == 1
    assert await db(lambda: list(Hold.objects.values_list("request_id", flat=True))) == [running.request_id]
    assert (await db(lambda: LimitCounter.objects.get(rule_id=flight.pk))).held == 1
    await client.settle(running)
    await no_drift()


def buried(order: Any, beat: datetime) -> None:
    """Its hold belongs to a process that has just beaten for the last time."""
    other = Process.objects.create(
        id=order.request_id, kind="server", host="", pid=0, started_at=beat, heartbeat_at=beat
    )
    Hold.objects.filter(request_id=order.request_id).update(process_id=other.pk)


async def test_a_process_that_has_not_heard_the_time_yet_is_told_the_window(
    client: Client, rule: MakeRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = await db(lambda: rule(metric="requests", per="day", amount=3))
    day = window_at("day", await db(client.clock.now), ZoneInfo("Asia/Tokyo"))
    assert day.end is not None
    midnight = day.end
    await db(lambda: client.clock.set(midnight + timedelta(minutes=20)))
    await client.beat()
    monkeypatch.setattr(processes_clock, "_system_ns", lambda: time.time_ns() - 2_700 * 10**9)
    assert await client.ask(4) == 3
    assert client.lane.counts["window"] == 4
    counter: LimitCounter = await db(lambda: LimitCounter.objects.get(rule_id=mine.pk))
    assert (counter.window_start, counter.used) == (midnight, 3)
    await no_drift()


@pytest.mark.parametrize("hours", [-50, -5, 50])
async def test_a_process_whose_clock_is_wrong_counts_in_the_databases_windows(
    client: Client, rule: MakeRule, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    day = await db(lambda: rule(metric="requests", per="day", amount=7))
    await db(lambda: rule(metric="requests", per="minute", amount=7))
    assert await client.ask(2) == 2
    monkeypatch.setattr(processes_clock, "_system_ns", lambda: time.time_ns() + int(hours * 3600 * 10**9))
    await client.beat()
    assert await client.ask(6) == 5
    await no_drift()
    counter: LimitCounter = await db(lambda: LimitCounter.objects.get(rule_id=day.pk))
    assert counter.used == 7
    # A limit that comes later starts from the ledger's truth, whatever the ids in it say.
    late: LimitRule = await db(lambda: rule(metric="tokens", per="day", amount=10**6))
    await client.ask(1)
    assert (await db(lambda: LimitCounter.objects.get(rule_id=late.pk))).used == 7 * TOKENS
