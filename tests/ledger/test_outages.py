"""The desk when the database is away, cut off, stopped or wrong, and when the sweeper was faster."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection

from gateway.errors import Unavailable
from gateway.ledger.desk import Desk
from gateway.ledger.link import Link, LinkLost, RowLocked
from gateway.ledger.models import Adjustment, Counter, DeadLetter, Hold, UsageRecord, WorkItem
from gateway.ledger.services import rate_unpriced, resolve_unknown
from gateway.ledger.sweeper import sweep
from gateway.ledger.verification import verify
from gateway.ledger.writer import Ticket
from tests.ledger.looking import WHOLE, MakeOrder, db, other_connection, until


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


async def test_a_database_that_does_not_answer_is_a_503_at_once(
    desk: Desk, order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = await db(order)
    asked, stopped = threading.Event(), threading.Event()
    call = desk.writer.link.call

    def hang(items: Any, **how: Any) -> Any:
        asked.set()
        stopped.wait(60)
        return call(items, **how)

    monkeypatch.setattr(desk.writer.link, "call", hang)
    waiting = asyncio.create_task(desk.admit(mine))
    await until(asked.is_set)
    monkeypatch.setattr("gateway.ledger.writer.STUCK_SECONDS", 0.1)  # not before: a slow start is not stuck
    await until(lambda: not desk.alive)
    with pytest.raises(Unavailable):
        await desk.admit(await db(order))
    stopped.set()
    assert (await waiting)[0] == "ok"


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


async def test_a_release_after_the_sweep_takes_the_estimate_back(desk: Desk, order: MakeOrder) -> None:
    """A process was frozen while an admission was on its way; its caller has long been told 503."""
    mine = await db(order)
    mine.client_request_id, mine.end_user = "trace-7", "alice"
    await desk.admit(mine)

    def die() -> None:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE ledger_process SET heartbeat_at = now() - interval '1 hour', ended_at = now()")

    await db(die)
    assert await db(sweep) == 1
    record = await db(UsageRecord.objects.get)
    assert (record.client_request_id, record.end_user) == ("trace-7", "alice")
    desk.writer.queue.put(Ticket(mine.release()))
    await until(Adjustment.objects.exists)
    adjustment = await db(Adjustment.objects.get)
    assert (adjustment.input_tokens, adjustment.output_tokens, adjustment.charge) == (-1000, -2000, 0)
    assert (await db(WorkItem.objects.get)).resolved_at is not None
    assert (await db(lambda: Counter.objects.get(scope="tenant"))).tokens == 0
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


async def test_a_settlement_after_a_persons_resolution_books_nothing_and_is_kept_for_somebody(
    desk: Desk, order: MakeOrder
) -> None:
    mine = await db(order)
    await desk.admit(mine)

    def die_and_be_resolved() -> None:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE ledger_process SET heartbeat_at = now() - interval '1 hour', ended_at = now()")
        assert sweep() == 1
        by = User.objects.create_superuser("alice")
        resolve_unknown(item=WorkItem.objects.get(), charged=False, reason="it was never answered", by=by)

    await db(die_and_be_resolved)
    await desk.settle(mine, WHOLE)
    await desk.settle(mine, WHOLE)
    assert (await db(Adjustment.objects.get)).kind == "resolution"
    letter = await db(DeadLetter.objects.get)
    assert (letter.request_id, letter.payload["charge"], letter.payload["output_tokens"]) == (
        mine.request_id, 450_000, 500
    )  # fmt: skip
    assert "resolved" in letter.error
    assert (await db(verify)).drift == [f"dead letter of {mine.request_id}: a settlement that is in no record "
                                        f"({letter.error})"]  # fmt: skip
    await db(lambda: DeadLetter.objects.update(resolved_at=letter.created_at))
    assert (await db(verify)).drift == []
