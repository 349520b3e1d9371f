"""Who gets rows of its own: processes that wait for each other, for a while."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from gateway.identifiers import uuid7
from gateway.ledger import link
from gateway.ledger.desk import Desk
from gateway.ledger.heat import ENOUGH_MS, HOT_SECONDS, WATCH_SECONDS, Heat
from gateway.ledger.items import Ending, Item, Order
from gateway.ledger.models import Counter, Hold
from gateway.ledger.verification import verify
from gateway.limits.models import LimitCounter, LimitRule
from gateway.upstreams.base import Usage
from tenants.models import APIKey
from tests.limits.conftest import limited, rule
from tests.limits.desk_process import spread_everything
from tests.limits.processes import Process, process
from tests.limits.test_shard_races import until_somebody_waits

__all__ = ["limited", "process", "rule"]


def test_a_tenant_that_is_waited_for_is_hot_for_a_while() -> None:
    heat, now = Heat(), time.monotonic()
    heat.shard = 3
    heat.waited([(7, 0, ENOUGH_MS // 2)], now)
    assert heat.shard_of(7) == 0
    heat.waited([(7, 0, ENOUGH_MS // 2), (8, 0, 1)], now + WATCH_SECONDS / 2)
    assert (heat.shard_of(7), heat.shard_of(8)) == (3, 0)
    assert heat._hot((7, 0), now + HOT_SECONDS)
    assert not heat._hot((7, 0), now + HOT_SECONDS + WATCH_SECONDS)  # measured anew


def test_a_little_waiting_again_and_again_is_not_heat() -> None:
    heat, now = Heat(), time.monotonic()
    heat.shard = 3
    for turn in range(10):
        heat.waited([(7, 0, ENOUGH_MS - 1)], now + turn * 2 * WATCH_SECONDS)
    assert heat.shard_of(7) == 0


def test_a_process_without_a_number_has_no_rows_of_its_own() -> None:
    heat = Heat()
    heat.waited([(7, 0, 10 * ENOUGH_MS)])
    assert heat.shard_of(7) == 0


async def ask(desk: Desk, order: Order) -> Order:
    order.request_id = uuid7()
    assert await desk.admit(order) == ("ok", None)
    await desk.settle(order, Ending("completed", Usage(input_tokens=1, output_tokens=1)))
    return order


def test_processes_that_fight_for_a_tenant_get_rows(
    monkeypatch: pytest.MonkeyPatch,
    acme: APIKey,
    limited: Callable[..., Order],
    rule: Callable[..., LimitRule],
    process: Callable[[int], Process],
) -> None:
    mine = rule(metric="tokens", per="day", amount=10**6)
    order, other, looking = limited(), process(0), process(0)
    monkeypatch.setattr(link, "_SESSION", link._SESSION.replace("'100ms'", "'60s'"))  # longer than it waits here
    desk = Desk()
    try:
        for _ in range(20):
            asyncio.run(ask(desk, order))
        assert desk.writer.heat._until == {}  # alone, it never does
        with other.open():
            other.run("SELECT id FROM ledger_counter WHERE scope = 'tenant' FOR UPDATE")
            thread = threading.Thread(target=asyncio.run, args=(ask(desk, order),))
            thread.start()
            until_somebody_waits(looking)
            time.sleep(2 * ENOUGH_MS / 1000)
        thread.join()
        number = desk.writer.heat.shard_of(acme.tenant_id)
        assert number == desk.writer.link.shard > 0
        asyncio.run(ask(desk, order))
    finally:
        desk.stop(5)
    rows = LimitCounter.objects.filter(rule_id=mine.pk)
    assert {row.shard for row in rows} == {0, number}
    assert sum(int(row.used) for row in rows) == 22 * 2
    tenant = Counter.objects.filter(scope="tenant", owner_id=acme.tenant_id)
    assert {(row.shard, row.requests) for row in tenant} == {(0, 21), (number, 1)}


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch, transactional_db: None) -> Iterator[tuple[Desk, list[Callable[[], None]]]]:
    """A desk whose share is used up with each request, and what to do when it hears that."""
    desk, then = Desk(), list[Callable[[], None]]()
    spread_everything(desk.writer.heat)
    while not desk.writer.heat.shard:  # it has one once it is connected
        time.sleep(0.01)
    call = desk.writer.link.call

    def heard(items: list[Item], **how: bool) -> list[list[Any]]:
        rows = call(items, **how)
        if any(row[1] == "again" for row in rows):
            then.pop()()
        return rows

    monkeypatch.setattr(desk.writer.link, "call", heard)
    yield desk, then
    desk.stop(5)


async def test_a_client_that_leaves_before_it_is_decided_on_all_rows_leaves_nothing(
    busy: tuple[Desk, list[Callable[[], None]]], limited: Callable[..., Order], rule: Callable[..., LimitRule]
) -> None:
    desk, then = busy
    await sync_to_async(rule)(metric="in_flight", per="", amount=1)
    order = await sync_to_async(limited)()
    left = threading.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(desk.admit(order))
    task.add_done_callback(lambda _: left.set())

    def leave() -> None:
        loop.call_soon_threadsafe(task.cancel)
        left.wait(60)

    then.append(leave)
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(desk.stop, 60)
    assert desk.writer.unwritten == 0
    assert not await Hold.objects.aexists()
    assert (await sync_to_async(verify)()).drift == []


async def test_a_desk_that_stops_still_decides_on_all_rows(
    busy: tuple[Desk, list[Callable[[], None]]], limited: Callable[..., Order], rule: Callable[..., LimitRule]
) -> None:
    desk, then = busy
    await sync_to_async(rule)(metric="in_flight", per="", amount=1)
    order = await sync_to_async(limited)()
    then.append(lambda: desk.writer.stop(60))
    assert await desk.admit(order) == ("ok", None)
    await asyncio.to_thread(desk.writer.join, 60)
    assert desk.writer.unwritten == 0
    assert await Hold.objects.acount() == 1
    assert then == []
