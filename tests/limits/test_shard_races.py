"""Rows of a counter, made and shared out while others are at it: each race as it would be lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from django.db import connection

from gateway.ledger.items import Item, Order
from gateway.ledger.models import Hold
from gateway.ledger.sweeper import sweep
from gateway.ledger.verification import verify
from gateway.limits.claims import make_claim
from gateway.limits.facts import load_model_rules, load_rules
from gateway.limits.models import LimitCounter, LimitRule
from tenants.models import APIKey
from tests.limits.processes import Process, process, release, settlement
from tests.limits.test_processes import deadlocks

__all__ = ["process"]

MakeRule = Callable[..., LimitRule]
Start = Callable[[int], Process]
Admission = Callable[..., Item]


@pytest.fixture
def ask(acme: APIKey, order: Callable[..., Order]) -> Admission:
    """An admission of this process that asks so much of every rule that there is, each said to be of this amount."""

    def make(process: Process, much: int, *, amount: int = 99, shard: int | None = None, **fields: Any) -> Item:
        plain = order()
        rules = load_rules(acme.tenant_id, acme.pk) + load_model_rules()
        now = datetime.now(UTC)
        claims = [make_claim(rule, plain.caller.zone, now, amount, much) for rule in rules]
        plain.input_tokens, plain.output_tokens = much, 0
        return process.admission(plain, *claims, shard=shard) | {"amount": much} | fields

    return make


def verdicts(answers: list[list[Any]]) -> list[str]:
    return [answer[1] for answer in answers]


def rows(rule: LimitRule) -> dict[int, LimitCounter]:
    return {row.shard: row for row in LimitCounter.objects.filter(rule_id=rule.pk)}


def waits(statement: Callable[[], Any]) -> bool:
    """For a lock that somebody has."""
    try:
        statement()
    except psycopg.errors.LockNotAvailable:
        return True
    return False


def settle(process: Process, item: Item, answer: list[Any], used: int) -> None:
    process.call(settlement(item, answer, tokens=used, charge=used))


def end_all(process: Process, *items: Item) -> None:
    process.call(*(release(item) for item in items))


@pytest.fixture
def budget(rule: MakeRule) -> LimitRule:
    return rule(metric="spend", per="month", currency="USD", amount=99)


@pytest.fixture
def three(process: Start, ask: Admission, budget: LimitRule) -> list[Process]:
    """With a third of the budget each."""
    processes = [process(shard) for shard in (1, 2, 3)]
    for _ in range(2):
        items = [ask(one, 1) for one in processes]
        for one, item in zip(processes, items, strict=True):
            assert verdicts(one.decide(item)) == ["ok"]
            end_all(one, item)
    items = [ask(one, 1) for one in processes]
    assert verdicts(processes[0].call(items[0] | {"whole": True})) == ["ok"]  # shares out, now that all were at it
    end_all(processes[0], items[0])
    return processes


def test_a_share_is_decided_without_the_others(three: list[Process], ask: Admission, budget: LimitRule) -> None:
    one, two, _ = three
    items = [ask(one, 20), ask(two, 20)]
    with one.open():
        assert verdicts(one.call(items[0])) == ["ok"]
        assert verdicts(two.call(items[1])) == ["ok"]
    assert sum(row.share or 0 for row in rows(budget).values()) <= 99
    end_all(one, *items)
    assert verify().drift == []


def test_what_one_has_taken_beyond_its_share_is_nobodys_room(
    three: list[Process], ask: Admission, budget: LimitRule
) -> None:
    """Real use was more than what was held: two others, each within its share, would take too much together."""
    one, two, three_ = three
    first = ask(one, 20)
    (answer,) = one.call(first)
    assert answer[1] == "ok"
    settle(one, first, answer, 80)
    items = [ask(two, 15), ask(three_, 15)]
    with two.open():
        found = verdicts(two.call(items[0]))
        assert found + verdicts(three_.call(items[1])) == ["again", "again"]
    assert verdicts(two.decide(items[0]) + three_.decide(items[1])) == ["ok", "limited"]
    assert sum(row.used + row.held for row in rows(budget).values()) == 95
    end_all(two, items[0])
    assert verify().drift == []


def test_a_row_that_is_made_while_others_are_waited_for_is_locked_too(
    process: Start, ask: Admission, budget: LimitRule
) -> None:
    one, two, waiting = process(1), process(2), process(0)
    first = ask(one, 1)
    assert verdicts(one.decide(first)) == ["ok"]
    item, found = ask(one, 65, whole=True), []

    def decide() -> None:
        with one.open():
            found.extend(one.call(item))
            decided.set()
            committed.wait(30)

    decided, committed = threading.Event(), threading.Event()
    thread = threading.Thread(target=decide)
    with two.open():
        two.run("SELECT id FROM limits_limitcounter ORDER BY id LIMIT 1 FOR UPDATE")
        thread.start()
        until_somebody_waits(waiting)
        other = ask(two, 10)
        assert verdicts(two.decide(other)) == ["ok"]  # makes its row, and shares out
    decided.wait(30)
    assert verdicts(found) == ["ok"]
    late = ask(two, 25)
    two.run("SET lock_timeout = 50")
    assert waits(lambda: two.call(late))
    committed.set()
    thread.join()
    two.run("SET lock_timeout = 8000")
    assert verdicts(two.decide(late)) == ["limited"]
    assert sum(row.used + row.held for row in rows(budget).values()) == 76
    end_all(one, first, item, other)
    assert verify().drift == []


def until_somebody_waits(process: Process) -> None:
    by = time.monotonic() + 60
    while time.monotonic() < by:
        if process.run(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        ):
            return
        process.run("SELECT pg_sleep(0.01)")
    raise AssertionError("nobody waits")


def test_processes_that_begin_a_window_at_once_never_deadlock(
    three: list[Process], ask: Admission, budget: LimitRule
) -> None:
    """As at midnight: the first row is missing for all of them."""
    before, found = deadlocks(), list[str]()
    for _ in range(15):
        LimitCounter.objects.all().delete()
        start, items = threading.Barrier(3), [(one, ask(one, 1)) for one in three]

        def begin(one: Process, item: Item, start: threading.Barrier = start) -> None:
            start.wait()
            found.extend(verdicts(one.decide(item)))
            end_all(one, item)

        threads = [threading.Thread(target=begin, args=pair) for pair in items]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == ["ok"] * 45
    assert deadlocks() == before
    assert verify().drift == []


def test_a_process_gets_rows_of_its_own_only_when_nobody_goes_by_the_first(
    process: Start, ask: Admission, budget: LimitRule
) -> None:
    """Who makes a counter under the first row's lock must find all that is under way."""
    plain, own = process(0), process(1)
    item = ask(plain, 1, shard=0)
    plain.call(item)
    own.run("SET lock_timeout = 50")
    with plain.open():
        end_all(plain, item)
        mine = ask(own, 1)
        assert waits(lambda: own.call(mine))
        assert waits(lambda: own.call(mine, skip=True))
    assert verdicts(own.decide(mine)) == ["ok"]
    with plain.open():
        plain.call(ask(plain, 1, shard=0) | {"op": "r"})
        assert verdicts(own.call(release(mine))) == ["ok"]  # from then on it does not wait
    assert verify().drift == []


def test_a_limit_that_begins_anew_leaves_no_row_behind(process: Start, ask: Admission, budget: LimitRule) -> None:
    """Without the first row, which knows what was used, a row that is just being made would know of nothing."""
    one, two = process(1), process(2)
    first = ask(one, 60)
    (answer,) = one.decide(first)
    settle(one, first, answer, 60)
    thread = threading.Thread(target=lambda: connection_run("SELECT limits_forget(%s, NULL)", budget.pk))
    with two.open():
        item = ask(two, 1)
        assert verdicts(two.call(item)) == ["again"]
        thread.start()
        until_somebody_waits(one)
    thread.join()
    assert rows(budget) == {}
    (answer,) = two.decide(ask(two, 40))
    assert answer[1] == "limited"
    assert rows(budget)[0].used == 60
    assert verify().drift == []


def connection_run(statement: str, *values: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
    connection.close()


def test_what_is_given_back_makes_no_counter(three: list[Process], ask: Admission, budget: LimitRule) -> None:
    one, two, _ = three
    item = ask(one, 20)
    (answer,) = one.decide(item)
    LimitCounter.objects.all().delete()
    settle(one, item, answer, 30)
    assert rows(budget) == {}
    last = ask(two, 1)
    (answer,) = two.decide(last)
    assert answer[1] == "ok"
    assert sum(row.used for row in rows(budget).values()) == 30
    end_all(two, last)
    assert verify().drift == []


def test_a_swept_key_that_had_no_row_but_a_process_own(process: Start, ask: Admission, budget: LimitRule) -> None:
    one = process(4)
    item = ask(one, 20)
    (answer,) = one.decide(item)
    sweep(lease_seconds=0)
    assert sweep(lease_seconds=0) == 1
    assert Hold.objects.count() == 0
    assert verify().drift == []
    (late,) = one.call(settlement(item, answer, tokens=30, charge=30))
    assert late[1] == "swept"
    assert sum(row.used for row in rows(budget).values()) == 30
    assert verify().drift == []
