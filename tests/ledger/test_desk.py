"""The desk's promises, on the real database: exactly once, fresh facts, and no item that harms another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings
from django.db import connection

from gateway.catalogue.models import CatalogueVersion, Price
from gateway.errors import InternalError, Unavailable
from gateway.ledger.desk import Desk
from gateway.ledger.items import Ending
from gateway.ledger.models import Counter, DeadLetter, Hold, UsageRecord, WorkItem
from gateway.ledger.verification import verify
from gateway.ledger.writer import Ticket
from gateway.telemetry import metrics
from gateway.upstreams.base import Usage
from tenants.models import APIKey, Tenant
from tests.ledger.looking import WHOLE, MakeOrder, db, other_connection, until


async def test_it_books_an_admitted_and_settled_request_once(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    assert (await desk.admit(mine))[0] == "ok"
    held = await db(lambda: Counter.objects.get(scope="tenant"))
    assert (held.held_requests, held.requests) == (1, 0)
    assert held.held == 150_000 + 1 + 1_200_000 + 1 + 1
    await desk.settle(mine, WHOLE)
    await desk.settle(mine, WHOLE)

    record = await db(UsageRecord.objects.get)
    assert (record.charge, record.cost, record.status) == (150_000 + 300_000, 100_000 + 200_000, "completed")
    assert record.lines[0] == ["charge", "input", 1000, "150000000", "150000"]
    counter = await db(lambda: Counter.objects.get(scope="key"))
    assert (counter.requests, counter.tokens, counter.charge) == (1, 1500, 450_000)
    assert (counter.held_requests, counter.held) == (0, 0)
    assert (await db(verify)).drift == []


async def test_it_returns_the_first_decision_when_a_batch_is_sent_again(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    await desk.admit(mine)
    first = mine.started_at
    assert (await desk.admit(mine))[0] == "ok"
    assert mine.started_at == first
    assert await db(Hold.objects.count) == 1
    assert (await db(lambda: Counter.objects.get(scope="key"))).held_requests == 1


async def test_it_shares_one_round_trip_among_many(desk: Desk, order: MakeOrder) -> None:
    orders = await db(lambda: [order() for _ in range(40)])
    assert {verdict for verdict, _ in await asyncio.gather(*(desk.admit(o) for o in orders))} == {"ok"}
    await asyncio.gather(*(desk.settle(o, WHOLE) for o in orders))
    assert desk.writer.items == 80
    assert desk.writer.batches < 20
    assert await db(UsageRecord.objects.count) == 40


@pytest.mark.parametrize(
    "change",
    [
        lambda: Tenant.objects.update(name="Acme II"),
        lambda: APIKey.objects.update(allowed_models=[]),
        lambda: APIKey.objects.get().secrets.create(digest=b"d" * 32, last4="abcd"),
        lambda: Price.objects.filter(side="charge").update(input=1),
        lambda: APIKey.objects.update(status="revoked"),
    ],
)
async def test_it_decides_nothing_on_old_facts(desk: Desk, order: MakeOrder, change: Callable[[], object]) -> None:
    mine = await db(order)
    await db(change)
    assert (await desk.admit(mine))[0] == "stale"
    assert await db(Hold.objects.count) == 0


async def test_it_does_not_call_facts_stale_because_a_key_was_used(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    await db(lambda: APIKey.objects.update(last_used_at="2026-11-22T00:00:00Z"))
    assert (await desk.admit(mine))[0] == "ok"


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda: Tenant.objects.update(status="suspended"), "suspended"),
        (lambda: Tenant.objects.update(status="closed"), "suspended"),
        (lambda: APIKey.objects.update(status="revoked"), "refused"),
        (lambda: APIKey.objects.update(expires_at="2026-01-01T00:00:00Z"), "refused"),
    ],
)
async def test_it_refuses_keys_and_tenants_that_are_not_live(
    desk: Desk, order: MakeOrder, change: Callable[[], object], verdict: str
) -> None:
    await db(change)
    mine = await db(order)
    assert (await desk.admit(mine))[0] == verdict
    assert await desk.check(mine.caller, mine.catalogue_version, mine.request_id) == verdict


async def test_it_books_the_day_of_the_tenants_own_zone(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    await desk.admit(mine)
    await desk.settle(mine, WHOLE)
    record = await db(lambda: UsageRecord.objects.select_related("tenant").get())
    assert record.local_date == record.started_at.astimezone(record.tenant.zone).date()


async def test_it_makes_a_price_immutable_by_its_first_use(desk: Desk, order: MakeOrder) -> None:
    await desk.admit(await db(order))
    assert await db(Price.objects.filter(first_used_at=None).count) == 0
    version = await db(CatalogueVersion.objects.get)
    with pytest.raises(Exception, match="has been used since"):
        await db(lambda: Price.objects.update(input=1))
    with pytest.raises(Exception, match="has been used since"):
        await db(lambda: Price.objects.all()[0].delete())
    assert (await db(CatalogueVersion.objects.get)).version == version.version


async def test_it_queues_an_unpriced_record_for_a_person(desk: Desk, order: MakeOrder) -> None:
    mine = await db(lambda: order(priced=False))
    await desk.admit(mine)
    await desk.settle(mine, WHOLE)
    assert (await db(UsageRecord.objects.get)).charge is None
    assert (await db(WorkItem.objects.get)).kind == "unpriced"


async def test_one_bad_item_harms_nobody_else(desk: Desk, order: MakeOrder) -> None:
    orders = await db(lambda: [order() for _ in range(9)])
    await asyncio.gather(*(desk.admit(o) for o in orders))
    bad = Ending("completed", Usage(output_tokens=-1))  # the table's own check refuses it
    futures = [desk.settle(o, bad if i == 4 else WHOLE) for i, o in enumerate(orders)]
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert [isinstance(outcome, InternalError) for outcome in outcomes] == [i == 4 for i in range(9)]
    assert await db(UsageRecord.objects.count) == 8
    letter = await db(DeadLetter.objects.get)
    assert letter.request_id == orders[4].request_id
    assert letter.payload["output_tokens"] == -1


async def test_one_item_that_is_not_even_json_harms_nobody_else(desk: Desk, order: MakeOrder) -> None:
    orders = await db(lambda: [order() for _ in range(3)])
    await asyncio.gather(*(desk.admit(o) for o in orders))
    orders[1].end_user = "\ud800"
    futures = [desk.settle(o, WHOLE) for o in orders]
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert [isinstance(outcome, InternalError) for outcome in outcomes] == [False, True, False]
    assert await db(DeadLetter.objects.count) == 1


async def test_a_caller_who_leaves_the_queue_leaves_no_hold(desk: Desk, order: MakeOrder) -> None:
    orders = await db(lambda: [order() for _ in range(6)])
    tasks = [asyncio.create_task(desk.admit(o)) for o in orders]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [outcome == ("ok", None) for outcome in outcomes] == [False, True] * 3
    await until(lambda: Hold.objects.count() == 3)
    assert (await db(lambda: Counter.objects.get(scope="key"))).held_requests == 3
    assert (await db(verify)).drift == []


async def test_who_leaves_in_the_instant_of_its_answer_leaves_no_hold(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    resolve = desk._resolve

    def resolve_and_leave(outcomes: Any) -> None:
        resolve(outcomes)
        task.cancel()

    desk._resolve = resolve_and_leave  # type: ignore[method-assign]
    task = asyncio.create_task(desk.admit(mine))
    with pytest.raises(asyncio.CancelledError):
        await task
    desk._resolve = resolve  # type: ignore[method-assign]
    await until(lambda: Counter.objects.get(scope="key").held_requests == 0)
    assert not await db(Hold.objects.exists)
    assert (await db(verify)).drift == []


async def test_one_locked_row_harms_nobody_else(desk: Desk, order: MakeOrder, globex: APIKey) -> None:
    mine, neighbours = await db(order), await db(lambda: [order(globex) for _ in range(5)])
    await desk.admit(mine)
    other = await db(other_connection)

    def lock() -> None:
        other.set_autocommit(False)
        other.cursor().execute("SELECT 1 FROM ledger_counter WHERE scope = 'key' FOR UPDATE")

    await db(lock)
    settled = desk.settle(mine, WHOLE)
    for neighbour in neighbours:
        assert (await desk.admit(neighbour))[0] == "ok"
        await desk.settle(neighbour, WHOLE)
    assert not settled.done()
    await db(other.rollback)
    await settled
    await db(other.close)
    assert await db(UsageRecord.objects.count) == 6
    assert (await db(verify)).drift == []


async def test_an_admission_on_a_row_that_stays_locked_is_refused_and_holds_nothing(
    desk: Desk, order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ledger.writer.PARKED_PATIENCE_SECONDS", 0.2)
    first, second = await db(lambda: [order(), order()])
    await desk.admit(first)
    other = await db(other_connection)

    def lock() -> None:
        other.set_autocommit(False)
        other.cursor().execute("SELECT 1 FROM ledger_counter WHERE scope = 'tenant' FOR UPDATE")

    await db(lock)
    with pytest.raises(Unavailable):
        await desk.admit(second)
    await db(other.rollback)
    await db(other.close)
    assert await db(Hold.objects.count) == 1


async def test_it_books_for_who_has_no_event_loop(desk: Desk, order: MakeOrder) -> None:
    """The garbage collector drops a relay in whichever thread it runs."""
    mine = await db(order)
    await desk.admit(mine)
    await asyncio.to_thread(desk.book, mine, WHOLE)
    await until(lambda: UsageRecord.objects.count() == 1)


async def test_a_full_queue_is_a_503_and_not_memory(
    desk: Desk, order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ledger.desk.MAX_WAITING", 3)
    orders = await db(lambda: [order() for _ in range(8)])
    outcomes = await asyncio.gather(*(desk.admit(o) for o in orders), return_exceptions=True)
    assert [outcome == ("ok", None) for outcome in outcomes] == [True] * 3 + [False] * 5
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes[3:])


async def test_a_settlement_whose_hold_and_record_are_both_lost_is_booked_all_the_same(
    desk: Desk, order: MakeOrder
) -> None:
    mine = await db(order)
    await desk.admit(mine)
    await db(lambda: Hold.objects.all().delete())
    await desk.settle(mine, WHOLE)
    assert (await db(UsageRecord.objects.get)).charge == 450_000


async def test_its_queue_is_seen_while_the_database_hangs(
    desk: Desk, order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is when somebody looks at the graph."""
    orders, call = await db(lambda: [order() for _ in range(4)]), desk.writer.link.call
    hangs, go, seen = threading.Event(), threading.Event(), list[int]()

    def hang(*args: Any, **how: Any) -> Any:
        hangs.set()
        assert go.wait(60)
        return call(*args, **how)

    monkeypatch.setattr(desk.writer.link, "call", hang)
    monkeypatch.setattr(metrics, "desk_queue", seen.append)
    admitted = [asyncio.create_task(desk.admit(orders[0]))]
    await until(hangs.is_set)
    admitted += [asyncio.create_task(desk.admit(one)) for one in orders[1:]]
    await until(lambda: seen[-1] == 3)
    go.set()
    assert {verdict for verdict, _ in await asyncio.gather(*admitted)} == {"ok"}
    await until(lambda: seen[-1] == 0)


async def test_stop_writes_what_was_given(order: MakeOrder) -> None:
    desk = Desk()
    mine = await db(order)
    await desk.admit(mine)
    desk.writer.queue.put(Ticket(mine.settlement(WHOLE)))
    assert desk.stop(60) == 0
    assert await db(UsageRecord.objects.count) == 1


def test_the_settings_of_the_tests_are_the_owners() -> None:
    assert connection.settings_dict["USER"] == settings.MIGRATION_DATABASE["USER"]
