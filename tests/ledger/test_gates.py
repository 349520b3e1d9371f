"""A deployment's own limits, decided by the desk: all or none, and exact."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection

from gateway.catalogue.models import CatalogueVersion, Deployment, Model, Provider
from gateway.ledger.desk import Desk
from gateway.ledger.items import Ending, Gate, Order
from gateway.ledger.link import LinkLost
from gateway.ledger.models import Counter, Hold, Process, UsageRecord
from gateway.ledger.models import Gate as Row
from gateway.ledger.sweeper import sweep
from gateway.ledger.verification import verify
from gateway.limits.claims import make_claim
from gateway.limits.facts import load_rules
from gateway.limits.models import LimitRule
from gateway.upstreams.base import Usage
from tenants.facts import load_callers
from tenants.models import APIKey
from tests.ledger.looking import WHOLE, MakeOrder, db, other_connection, until
from tests.limits.clock import Clock, clock  # noqa: F401

ESTIMATE = 3000  # of an order of the fixture
FAILED = Ending("failed", Usage(), 502, "upstream_error")


async def asked(order: MakeOrder, *gates: Gate) -> Order:
    mine: Order = await db(order)
    mine.candidates = list(gates)
    return mine


async def row(deployment: int) -> tuple[int, int]:
    """Requests and tokens that this gate holds."""
    found = await db(lambda: Row.objects.get(pk=deployment))
    return sum(found.requests), sum(found.tokens)


def held(deployment: int) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM ledger_hold WHERE gate_second IS NOT NULL AND deployment_id = %s", [deployment]
        )
        return int(cursor.fetchone()[0])


async def test_it_takes_the_first_with_room(desk: Desk, order: MakeOrder) -> None:
    gates = (Gate(71, 1, rpm=1), Gate(72, 2, in_flight=1), Gate(73, 3))
    taken = []
    for _ in range(4):
        mine = await asked(order, *gates)
        assert await desk.admit(mine) == ("ok", None)
        taken.append((mine.deployment_id, mine.provider_id))
    assert taken == [(71, 1), (72, 2), (73, 3), (73, 3)]
    holds = await db(lambda: sorted(Hold.objects.values_list("deployment_id", "provider_id")))
    assert holds == sorted(taken)
    assert await db(held, 73) == 0


async def test_it_says_when_there_will_be_room(desk: Desk, order: MakeOrder) -> None:
    gate, began = Gate(71, 1, rpm=1), time.monotonic()
    assert (await desk.admit(await asked(order, gate)))[0] == "ok"
    verdict, wait_ms = await desk.admit(await asked(order, gate))
    passed_ms = 1000 * (time.monotonic() - began)
    assert verdict == "full" and 60_000 - passed_ms <= wait_ms <= 61_000
    assert await db(Hold.objects.count) == 1
    assert (await db(lambda: Counter.objects.get(scope="key"))).held_requests == 1


@pytest.mark.parametrize("gate", [Gate(71, 1, in_flight=1), Gate(71, 1, tpm=ESTIMATE - 1)])
async def test_it_does_not_know_when_what_runs_will_end(desk: Desk, order: MakeOrder, gate: Gate) -> None:
    await desk.admit(await asked(order, gate))
    assert await desk.admit(await asked(order, gate)) == ("full", None)


async def test_what_ends_makes_room_in_flight(desk: Desk, order: MakeOrder) -> None:
    gate = Gate(71, 1, in_flight=1)
    for ending in (WHOLE, FAILED):
        mine = await asked(order, gate)
        assert (await desk.admit(mine))[0] == "ok"
        assert (await desk.admit(await asked(order, gate)))[0] == "full"
        await desk.settle(mine, ending)
    assert (await desk.admit(await asked(order, gate)))[0] == "ok"


@pytest.mark.parametrize(("ending", "used"), [(WHOLE, 1500), (FAILED, 0)])
async def test_it_counts_the_tokens_that_were_really_used(
    desk: Desk, order: MakeOrder, ending: Ending, used: int
) -> None:
    gate = Gate(71, 1, tpm=ESTIMATE + used)
    mine = await asked(order, gate)
    await desk.admit(mine)
    assert await row(71) == (1, ESTIMATE)
    verdict, wait_ms = await desk.admit(await asked(order, Gate(71, 1, tpm=ESTIMATE + used)))
    assert verdict == "full" and wait_ms is not None
    await desk.settle(mine, ending)
    await desk.settle(mine, ending)
    assert await row(71) == (1, used)
    assert (await desk.admit(await asked(order, gate)))[0] == "ok"


async def test_a_batch_takes_no_more_than_there_is(desk: Desk, order: MakeOrder) -> None:
    orders = [await asked(order, Gate(71, 1, in_flight=3), Gate(72, 2, rpm=4)) for _ in range(12)]
    verdicts = [verdict for verdict, _ in await asyncio.gather(*(desk.admit(o) for o in orders))]
    assert sorted(verdicts) == ["full"] * 5 + ["ok"] * 7
    assert (await db(held, 71), await db(held, 72)) == (3, 4)
    done = [o for o, verdict in zip(orders, verdicts, strict=True) if verdict == "ok"]
    await asyncio.gather(*(desk.settle(o, WHOLE) for o in done))
    assert await db(UsageRecord.objects.count) == 7
    assert (await db(verify)).drift == []


async def test_another_attempt_moves_the_hold(desk: Desk, order: MakeOrder) -> None:
    first = Gate(71, 1, tpm=100_000, in_flight=1)
    mine = await asked(order, first)
    await desk.admit(mine)
    small = await db(lambda: Model.objects.create(public_id="acme-small"))
    provider = await db(Provider.objects.get)
    await db(lambda: Deployment.objects.create(pk=72, model=small, provider=provider, upstream_model="small"))
    assert await desk.move(mine, [Gate(72, 2, rpm=1)]) is True
    assert (mine.deployment_id, mine.provider_id) == (72, 2)
    hold = await db(Hold.objects.get)
    assert (hold.deployment_id, hold.provider_id, hold.served_model) == (72, 2, "acme-small")
    assert await row(71) == (1, 0)  # it was a request there, and used nothing
    assert (await desk.admit(await asked(order, first)))[0] == "ok"
    assert await desk.move(mine, [Gate(72, 2, rpm=1), first]) is False
    assert mine.deployment_id == 72
    assert await desk.move(mine, [Gate(73, 3)]) is True
    await desk.settle(mine, WHOLE)
    assert (await db(UsageRecord.objects.get)).deployment_id == 73
    assert await row(72) == (1, 0)


async def test_another_attempt_at_the_same_deployment_is_a_request_more(desk: Desk, order: MakeOrder) -> None:
    gate = Gate(71, 1, rpm=2, tpm=ESTIMATE, in_flight=1)
    mine = await asked(order, gate)
    await desk.admit(mine)
    assert await desk.move(mine, [gate]) is True
    assert await row(71) == (2, ESTIMATE)
    assert await desk.move(mine, [gate]) is False
    assert await row(71) == (2, ESTIMATE)


async def test_an_order_without_limits_may_move_to_a_limited_one(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    await desk.admit(mine)
    assert not mine.gated
    assert await desk.move(mine, [Gate(71, 1, tpm=10_000)]) is True
    await desk.settle(mine, WHOLE)
    assert await row(71) == (1, 1500)


async def test_who_leaves_before_the_call_has_taken_nothing(desk: Desk, order: MakeOrder) -> None:
    mine = await asked(order, Gate(71, 1, rpm=1, tpm=ESTIMATE, in_flight=1))
    task = asyncio.ensure_future(desk.admit(mine))
    await asyncio.sleep(0)
    task.cancel()
    await until(lambda: desk.writer.unwritten == 0 and not Hold.objects.exists())
    assert (await desk.admit(await asked(order, *mine.candidates)))[0] == "ok"


async def test_plain_requests_touch_no_gate(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    await desk.admit(mine)
    await desk.settle(mine, WHOLE)
    assert not mine.gated
    assert await db(Row.objects.count) == 0


async def test_a_locked_gate_sets_its_own_requests_apart(
    desk: Desk, order: MakeOrder, acme: APIKey, globex: APIKey
) -> None:
    gate = Gate(71, 1, tpm=100_000)
    running = await asked(order, gate)
    await desk.admit(running)
    other = await db(other_connection)
    await db(lambda: other.cursor().execute("BEGIN; SELECT FROM ledger_gate FOR UPDATE"))
    waiting = asyncio.ensure_future(desk.admit(await asked(order, gate)))
    settled = desk.settle(running, WHOLE)
    neighbour = await db(order, globex)
    assert (await desk.admit(neighbour))[0] == "ok"
    await desk.settle(neighbour, WHOLE)
    assert not waiting.done() and not settled.done()
    await db(other.close)
    assert (await waiting)[0] == "ok"
    await settled
    assert await row(71) == (2, ESTIMATE + 1500)


async def test_a_move_with_an_unknown_outcome_is_made_once(
    desk: Desk, order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, lost = desk.writer.link.call, []

    def cut_after_commit(items: Any, **how: Any) -> Any:
        rows = call(items, **how)
        if not lost:
            lost.append(items)
            raise LinkLost("the connection went away before the answer came")
        return rows

    gate = Gate(71, 1, rpm=2, in_flight=1)
    mine = await asked(order, gate)
    await desk.admit(mine)
    monkeypatch.setattr(desk.writer.link, "call", cut_after_commit)
    assert await desk.move(mine, [gate, Gate(72, 2)]) is True
    assert mine.deployment_id == 71 and await row(71) == (2, 0)
    assert await desk.move(mine, [gate, Gate(72, 2)]) is True
    assert mine.deployment_id == 72


async def test_who_was_full_because_of_a_refused_one_asks_again(
    desk: Desk, order: MakeOrder, acme: APIKey, globex: APIKey
) -> None:
    """In one batch: the first takes the gate's last place, and is then refused by a limit of its own."""
    rule = await db(lambda: LimitRule.objects.create(key=acme, metric="requests", per="day", amount=0))
    gate = Gate(71, 1, in_flight=1)
    limited, lucky = await asked(order, gate), await db(order, globex)
    lucky.candidates = [gate]
    limited.caller = await db(lambda: load_callers([acme.public_id])[acme.public_id])
    now = datetime.now(UTC)
    (watching,) = [r for r in await db(load_rules, acme.tenant_id, acme.pk) if r.id == rule.pk]
    limited.claims = [make_claim(watching, limited.caller.zone, now, 0, 1)]
    limited.catalogue_version = lucky.catalogue_version = (await db(CatalogueVersion.objects.get)).version
    verdicts = await asyncio.gather(desk.admit(limited), desk.admit(lucky))
    assert [verdict for verdict, _ in verdicts] == ["limited", "ok"]
    assert await row(71) == (1, 0)
    assert await db(held, 71) == 1


async def test_a_swept_request_makes_no_more_attempts(desk: Desk, order: MakeOrder) -> None:
    mine = await asked(order, Gate(71, 1, in_flight=1))
    await desk.admit(mine)
    await db(lambda: Process.objects.update(ended_at=datetime.now(UTC)))
    await db(sweep)
    assert await desk.move(mine, [Gate(72, 2)]) is False
    await desk.settle(mine, WHOLE)
    assert (await desk.admit(await asked(order, Gate(71, 1, in_flight=1))))[0] == "ok"
    assert (await db(verify)).drift == []


async def test_a_clock_that_is_put_back_does_not_close_a_gate_for_long(clock: Clock, order: MakeOrder) -> None:  # noqa: F811
    noon = datetime(2027, 5, 5, 12, tzinfo=UTC)
    gate = Gate(71, 1, rpm=1)
    await db(clock.freeze, noon)
    desk = await db(Desk)
    try:
        assert (await desk.admit(await asked(order, gate)))[0] == "ok"
        await db(clock.freeze, noon - timedelta(hours=2))
        assert (await desk.admit(await asked(order, gate)))[0] == "full"
        await db(clock.freeze, noon - timedelta(hours=2) + timedelta(seconds=61))
        assert (await desk.admit(await asked(order, gate)))[0] == "ok"
    finally:
        await db(desk.stop, 5)
