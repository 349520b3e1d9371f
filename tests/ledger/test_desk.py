"""The desk's promises, on the real database: exactly once, fresh facts, and no item that harms another."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection, connections

from gateway.catalogue.models import CatalogueVersion, Price
from gateway.errors import InternalError, Unavailable
from gateway.ledger.desk import Desk
from gateway.ledger.items import Ending, Order
from gateway.ledger.link import Link, LinkLost, RowLocked
from gateway.ledger.models import Adjustment, Counter, DeadLetter, Hold, UsageRecord, WorkItem
from gateway.ledger.services import rate_unpriced
from gateway.ledger.sweeper import sweep
from gateway.ledger.verification import verify
from gateway.ledger.writer import Ticket
from gateway.upstreams.base import Usage
from tenants.models import APIKey, Tenant

MakeOrder = Callable[..., Order]
WHOLE = Ending("completed", Usage(input_tokens=1000, cached_input_tokens=0, output_tokens=500))


async def db(function: Callable[..., Any], *args: Any) -> Any:
    return await sync_to_async(function, thread_sensitive=True)(*args)


async def until(condition: Callable[[], bool], tries: int = 400) -> None:
    """Wait for what another thread does; bounded by count."""
    for _ in range(tries):
        if await db(condition):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come to pass")


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


def other_connection() -> Any:
    """A session of somebody else's: an admin's, a backup's."""
    other = connections["default"].copy()
    other.settings_dict = {**other.settings_dict, "NAME": connection.settings_dict["NAME"]}
    other.ensure_connection()
    return other


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


async def test_a_commit_with_an_unknown_outcome_is_sent_again(
    desk: Desk, order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, lost = desk.writer.link.call, []

    def cut_after_commit(items: Any, **how: Any) -> Any:
        rows = call(items, **how)
        if not lost:
            lost.append(items)
            raise LinkLost("the connection went away before the answer came")
        return rows

    monkeypatch.setattr(desk.writer.link, "call", cut_after_commit)
    mine = await db(order)
    assert (await desk.admit(mine))[0] == "ok"
    lost.clear()
    await desk.settle(mine, WHOLE)
    assert await db(UsageRecord.objects.count) == 1
    assert (await db(lambda: Counter.objects.get(scope="tenant"))).requests == 1
    assert (await db(verify)).drift == []


async def test_while_the_database_is_away_it_refuses_new_requests_and_keeps_settlements(
    desk: Desk, order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, fresh = await db(lambda: [order(), order()])
    await desk.admit(running)
    link = desk.writer.link

    def away(*_: Any, **__: Any) -> Any:
        raise LinkLost("away")

    with monkeypatch.context() as outage:
        outage.setattr(link, "call", away)
        outage.setattr(link, "connect", away)
        settled = desk.settle(running, WHOLE)
        await until(lambda: desk.writer.down)
        with pytest.raises(Unavailable) as refused:
            await desk.admit(fresh)
        assert refused.value.headers["retry-after"]
        assert not settled.done()
    await settled
    assert (await db(UsageRecord.objects.get)).request_id == running.request_id
    assert await db(Hold.objects.count) == 0


async def test_an_admission_that_was_cut_off_by_an_outage_leaves_no_hold(
    desk: Desk, order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, call = desk.writer.link, desk.writer.link.call

    def commit_then_lose(items: Any, **how: Any) -> Any:
        call(items, **how)
        raise LinkLost("gone")

    def away() -> None:
        raise LinkLost("away")

    with monkeypatch.context() as outage:
        outage.setattr(link, "call", commit_then_lose)
        outage.setattr(link, "connect", away)
        with pytest.raises(Unavailable):
            await desk.admit(await db(order))
    await until(lambda: Hold.objects.count() == 0)
    assert (await db(verify)).drift == []


async def test_an_admission_whose_commit_was_lost_keeps_its_first_decision(
    desk: Desk, order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is revoked between the commit and the second try: the hold stands, and somebody settles it."""
    call, lost = desk.writer.link.call, []

    def cut_after_commit(items: Any, **how: Any) -> Any:
        rows = call(items, **how)
        if not lost:
            lost.append(items)
            with connection.cursor() as cursor:
                cursor.execute("UPDATE tenants_apikey SET status = 'revoked'")
            raise LinkLost("the connection went away before the answer came")
        return rows

    mine = await db(order)
    monkeypatch.setattr(desk.writer.link, "call", cut_after_commit)
    assert (await desk.admit(mine))[0] == "ok"
    assert mine.started_at is not None
    await desk.settle(mine, WHOLE)
    assert await db(Hold.objects.count) == 0
    assert (await db(verify)).drift == []


async def test_an_admission_that_was_sent_and_then_waited_too_long_leaves_no_hold(
    desk: Desk, order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ledger.writer.PARKED_PATIENCE_SECONDS", 0.2)
    call, tries = desk.writer.link.call, []

    def lose_then_lock(items: Any, **how: Any) -> Any:
        tries.append(items)
        if len(tries) == 1:
            call(items, **how)
            raise LinkLost("the connection went away before the answer came")
        if items[0]["op"] == "a":
            raise RowLocked("somebody holds the counter")
        return call(items, **how)

    monkeypatch.setattr(desk.writer.link, "call", lose_then_lock)
    with pytest.raises(Unavailable):
        await desk.admit(await db(order))
    await until(lambda: Hold.objects.count() == 0)
    assert (await db(verify)).drift == []


async def test_the_session_that_was_given_up_can_book_nothing_more(desk: Desk, order: MakeOrder) -> None:
    """Its server may have been stopped with a batch in its buffer; the next session ends it first."""
    await desk.admit(await db(order))
    left = desk.writer.link._left
    kept = desk.writer.link._pg
    socket = os.dup(kept.socket)  # closing the link does not end the session: as if the network had cut it
    assert socket
    other = await db(other_connection)

    def sessions() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [left])
            return int(cursor.fetchone()[0])

    link = Link()
    link._left = left
    await db(link.connect)
    assert await db(sessions) == 0
    os.close(socket)
    await db(link.close)
    await db(other.close)
    assert (await desk.admit(await db(order)))[0] == "ok"  # and its owner connects again


async def test_what_a_deploy_left_out_is_no_dead_letter(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    await desk.admit(mine)

    def rename(old: str, new: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER FUNCTION {old} RENAME TO {new}")

    await db(rename, "ledger_settle", "ledger_settle_elsewhere")
    settled = desk.settle(mine, WHOLE)
    await until(lambda: bool(desk.writer._parked))
    await db(rename, "ledger_settle_elsewhere", "ledger_settle")
    await settled
    assert not await db(DeadLetter.objects.exists)
    assert (await db(UsageRecord.objects.get)).charge == 450_000


async def test_it_books_for_who_has_no_event_loop(desk: Desk, order: MakeOrder) -> None:
    """The garbage collector drops a relay in whichever thread it runs."""
    mine = await db(order)
    await desk.admit(mine)
    await asyncio.to_thread(desk.book, mine, WHOLE)
    await until(lambda: UsageRecord.objects.count() == 1)


async def test_a_database_that_does_not_answer_is_a_503_at_once(
    desk: Desk, order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = await db(order)
    stopped = threading.Event()
    call = desk.writer.link.call

    def hang(items: Any, **how: Any) -> Any:
        stopped.wait(30)
        return call(items, **how)

    monkeypatch.setattr("gateway.ledger.writer.STUCK_SECONDS", 0.1)
    monkeypatch.setattr(desk.writer.link, "call", hang)
    waiting = asyncio.create_task(desk.admit(mine))
    await until(lambda: not desk.alive)
    with pytest.raises(Unavailable):
        await desk.admit(await db(order))
    stopped.set()
    assert (await waiting)[0] == "ok"


async def test_a_full_queue_is_a_503_and_not_memory(
    desk: Desk, order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ledger.desk.MAX_WAITING", 3)
    orders = await db(lambda: [order() for _ in range(8)])
    outcomes = await asyncio.gather(*(desk.admit(o) for o in orders), return_exceptions=True)
    assert [outcome == ("ok", None) for outcome in outcomes] == [True] * 3 + [False] * 5
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes[3:])


async def test_the_writer_survives_what_nobody_thought_of(
    desk: Desk, order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = await db(order)
    await desk.admit(mine)
    with monkeypatch.context() as defect:
        defect.setattr(desk.writer, "_hand_out", lambda *_: 1 / 0)
        settled = desk.settle(mine, WHOLE)
        await asyncio.sleep(0.3)
    assert desk.writer.is_alive()
    await settled
    assert await db(UsageRecord.objects.count) == 1


async def test_a_settlement_after_the_sweep_becomes_an_adjustment(desk: Desk, order: MakeOrder) -> None:
    mine = await db(order)
    await desk.admit(mine)

    def die() -> None:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE ledger_process SET heartbeat_at = now() - interval '1 hour', ended_at = now()")

    await db(die)
    assert await db(sweep) == 1
    unknown = await db(UsageRecord.objects.get)
    assert (unknown.status, unknown.charge, unknown.input_tokens) == ("unknown", 0, 1000)
    assert (await db(WorkItem.objects.get)).resolved_at is None

    assert (await desk.settle(mine, WHOLE))[1] == "swept"
    await desk.settle(mine, WHOLE)
    adjustment = await db(Adjustment.objects.get)
    assert (adjustment.kind, adjustment.charge, adjustment.output_tokens) == ("late_settlement", 450_000, -1500)
    assert (await db(WorkItem.objects.get)).resolved_at is not None
    counter = await db(lambda: Counter.objects.get(scope="tenant"))
    assert (counter.requests, counter.tokens, counter.charge, counter.held) == (1, 1500, 450_000, 0)
    assert (await db(verify)).drift == []


async def test_an_unpriced_settlement_after_the_sweep_still_waits_for_its_price(desk: Desk, order: MakeOrder) -> None:
    mine = await db(lambda: order(priced=False))
    await desk.admit(mine)

    def die() -> None:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE ledger_process SET heartbeat_at = now() - interval '1 hour', ended_at = now()")

    await db(die)
    assert await db(sweep) == 1
    assert (await desk.settle(mine, WHOLE))[1] == "swept"
    item = await db(lambda: WorkItem.objects.get(resolved_at=None))
    assert item.kind == "unpriced"
    by = await db(lambda: User.objects.create_superuser("alice"))
    rating = await db(lambda: rate_unpriced(item=item, by=by))
    assert (rating.charge, rating.cost) == (450_000, 300_000)
    assert (await db(verify)).drift == []


async def test_a_settlement_whose_hold_and_record_are_both_lost_is_booked_all_the_same(
    desk: Desk, order: MakeOrder
) -> None:
    mine = await db(order)
    await desk.admit(mine)
    await db(lambda: Hold.objects.all().delete())
    await desk.settle(mine, WHOLE)
    assert (await db(UsageRecord.objects.get)).charge == 450_000


async def test_stop_writes_what_was_given(order: MakeOrder) -> None:
    desk = Desk()
    mine = await db(order)
    await desk.admit(mine)
    desk.writer.queue.put(Ticket(mine.settlement(WHOLE)))
    assert desk.stop(5) == 0
    assert await db(UsageRecord.objects.count) == 1


def test_the_settings_of_the_tests_are_the_owners() -> None:
    assert connection.settings_dict["USER"] == settings.MIGRATION_DATABASE["USER"]
