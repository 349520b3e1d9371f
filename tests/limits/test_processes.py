"""Limits in several processes at once: never too much, never too little, whatever dies or is cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from gateway.catalogue.models import Model
from gateway.catalogue.pricing import hold
from gateway.catalogue.snapshot import load_catalogue
from gateway.ledger.models import Hold, UsageRecord, WorkItem
from gateway.ledger.sweeper import sweep
from gateway.ledger.verification import verify
from gateway.limits.models import LimitCounter, LimitRule
from tenants.models import APIKey
from tests.limits.desk_process import USAGE

MakeRule = Callable[..., LimitRule]
ROOT = Path(__file__).parents[2]
PRICE = 150  # nano-units of an input token; an output token is four times as dear
CHARGE = (USAGE["input"] + 4 * USAGE["output"]) * PRICE
TOKENS = USAGE["input"] + USAGE["output"]
PATIENCE_SECONDS = 120
Child = subprocess.Popen[bytes]


class Desks:
    """Processes with a desk each. Every second one has counters of its own (ledger.heat)."""

    def __init__(self) -> None:
        self.hot = True
        self.running: list[Child] = []
        self.begun: list[Child] = []
        self.killed: list[Child] = []

    def start(self, *keys: APIKey, processes: int = 1, **plan: Any) -> list[Child]:
        names = ("NAME", "USER", "PASSWORD", "HOST", "PORT")
        plan = {"cap": 100, "lanes": 6, "requests": 400, "patience": 12} | plan
        plan["database"] = {name: connection.settings_dict[name] for name in names}
        plan["keys"] = [key.public_id for key in keys]
        started = []
        for _ in range(processes):
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.limits.desk_process"],
                cwd=ROOT,
                env={**os.environ, "DJANGO_SETTINGS_MODULE": "gateway.settings"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,  # a line that was heard takes nothing with it of what `communicate` will read
            )
            plan["hot"] = self.hot and len(self.running + started) % 2 == 1
            tell(process, json.dumps(plan))
            started.append(process)
        self.running += started
        return started

    def go(self, *which: Child) -> None:
        """These begin; without any, all that have not."""
        chosen = which or tuple(process for process in self.running if process not in self.begun)
        for process in chosen:
            hear(process, "ready")
        for process in chosen:
            tell(process, "go")
        self.begun += chosen

    def kill(self, process: Child) -> None:
        """As kill -9 does."""
        self.killed.append(process)
        process.kill()

    def reports(self) -> list[dict[str, Any]]:
        """Of those that were not killed; they have ended."""
        found = []
        for process in self.running:
            out, _ = process.communicate(timeout=300)
            if process not in self.killed:
                assert process.returncode == 0, out
                found.append(json.loads(out.splitlines()[-1]))
        assert all(report["left"] == 0 for report in found)
        return found

    def run(self) -> list[dict[str, Any]]:
        self.go()
        return self.reports()


def tell(process: Child, line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line.encode() + b"\n")


def hear(process: Child, line: str) -> None:
    """Of a process that says so whatever the others do: it runs alone, or there is enough for all."""
    assert process.stdout is not None
    assert process.stdout.readline().decode().strip() == line


def admitted(reports: list[dict[str, Any]]) -> int:
    return sum(report["counts"].get("ok", 0) for report in reports)


@pytest.fixture
def desks(chat_model: Model) -> Iterator[Desks]:
    found = Desks()
    yield found
    for process in found.running:
        process.kill()
        process.wait()
    until_left()


def until_left() -> None:
    """The sessions of desks that are gone have ended too: what they had begun is committed or undone."""
    by = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < by:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'counterfoil desk'"
                " AND datname = current_database()"
            )
            if cursor.fetchone()[0] == 0:
                return
        time.sleep(0.02)
    raise AssertionError("a desk's session is still there")


def until_booked(count: int) -> None:
    """So many requests have ended, whoever made them."""
    by = time.monotonic() + PATIENCE_SECONDS
    while (found := UsageRecord.objects.count()) < count:
        assert time.monotonic() < by, f"{found} records, and not {count}"
        time.sleep(0.01)


def deadlocks() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        return int(cursor.fetchone()[0])


def true_books() -> None:
    until_left()
    assert verify().drift == []
    assert Hold.objects.count() == 0
    assert all(counter.held == 0 for counter in LimitCounter.objects.all())


def total_used(rule: LimitRule) -> int:
    """What is used of its window, in whichever rows."""
    return sum(int(counter.used) for counter in LimitCounter.objects.filter(rule_id=rule.pk))


def quiet(heard: list[str]) -> list[str]:
    """Without the news that a counter is busy, which it is here."""
    return [line for line in heard if "is busy in many processes" not in line]


def records() -> list[Any]:
    return list(UsageRecord.objects.order_by("started_at"))


def decisions_of(rule: LimitRule) -> list[list[int]]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT decided FROM ledger_usagerecord WHERE decided <> '{}'")
        return [row for (decided,) in cursor.fetchall() for row in decided if row[0] == rule.pk]


def decided_within(rule: LimitRule) -> None:
    """Every admission, by what it was decided on: [rule, ..., amount, ask, used, held]."""
    rows = decisions_of(rule)
    assert rows
    assert all(used + held + ask <= amount for *_, amount, ask, used, held in rows)


def most_at_once(asked: Callable[[Any], int], charged: Callable[[Any], int]) -> int:
    """By the records' own times: what running requests held and ended ones were charged, at its highest."""
    events = []
    for record in records():
        ask = asked(record)
        events += [(record.started_at, 1, ask), (record.ended_at, 0, charged(record) - ask)]
    total = most = 0
    for _, _, change in sorted(events):
        total += change
        most = max(most, total)
    return most


def most_in_a_minute(amount: Callable[[Any], int]) -> int:
    found, minute = records(), timedelta(seconds=60)
    return max(
        sum(amount(record) for record in found if first.started_at <= record.started_at < first.started_at + minute)
        for first in found
    )


@pytest.mark.parametrize("hot", [False, True])
def test_a_hard_budget_is_never_exceeded_and_used_to_its_end(
    desks: Desks, acme: APIKey, rule: MakeRule, hot: bool
) -> None:
    desks.hot = hot
    budget = 200 * CHARGE + 12_345
    mine = rule(metric="spend", per="month", currency="USD", amount=budget, hold="hard")
    desks.start(acme, processes=4)
    desks.go()
    seen, work = [], True
    while work:
        work = len(seen) < 20_000 and any(process.poll() is None for process in desks.running)
        seen.append(sum(int(c.used + c.held) for c in LimitCounter.objects.filter(rule_id=mine.pk)))
        time.sleep(0.01)
    reports = desks.reports()
    assert 0 < max(seen) <= budget
    assert not hot or LimitCounter.objects.filter(shard__gt=0).exists()
    booked = records()
    assert {record.charge for record in booked} == {CHARGE}
    assert sum(record.charge for record in booked) <= budget
    decided_within(mine)
    (ask,) = {int(row[8]) for row in decisions_of(mine)}
    assert most_at_once(lambda _: ask, lambda r: r.charge) <= budget
    rates = load_catalogue().by_name["acme-chat"].charge_rates(acme.tenant_id, "USD", booked[0].started_at)
    assert rates is not None
    assert ask >= hold(rates, USAGE["input"], 100)
    serial = (budget - ask) // CHARGE + 1
    assert serial - 4 * 6 <= admitted(reports) <= budget // CHARGE
    true_books()


def test_rates_and_flights_are_exact_in_several_processes(desks: Desks, acme: APIKey, rule: MakeRule) -> None:
    requests = rule(metric="requests", per="minute", amount=150)
    tokens = rule(key=acme, metric="tokens", per="minute", amount=120 * TOKENS)
    flight = rule(metric="in_flight", per="", amount=5)
    desks.start(acme, processes=4, cap=40, lanes=4, patience=25)
    reports = desks.run()
    for watched in (requests, tokens, flight):
        decided_within(watched)
    assert most_in_a_minute(lambda _: 1) <= 150
    assert most_in_a_minute(lambda r: r.input_tokens + r.output_tokens) <= 120 * TOKENS
    assert most_at_once(lambda _: 1, lambda _: 0) <= 5
    assert admitted(reports) >= 120 - 5 - 1
    true_books()


def test_requests_in_a_minute_are_used_to_the_last(desks: Desks, acme: APIKey, rule: MakeRule) -> None:
    mine = rule(metric="requests", per="minute", amount=101)
    desks.start(acme, processes=4, patience=3)
    reports = desks.run()
    assert most_in_a_minute(lambda _: 1) == 101
    assert admitted(reports) >= 101
    decided_within(mine)
    true_books()


def test_tenants_that_share_a_models_limits_never_deadlock(
    desks: Desks, acme: APIKey, globex: APIKey, chat_model: Model, rule: MakeRule
) -> None:
    """Also while limits for everybody are added, and counters made beside requests that know nothing of them."""
    before = deadlocks()
    shared = [
        rule(model=chat_model, metric="requests", per="minute", amount=700),
        rule(model=chat_model, metric="tokens", per="day", amount=10**9),
    ]
    rule(tenant=globex.tenant, metric="requests", per="day", amount=10**6)
    rule(metric="in_flight", per="", amount=1000)
    first = desks.start(acme, globex, processes=2, requests=14)
    first += desks.start(globex, acme, processes=2, requests=14)
    (last,) = desks.start(globex, acme, requests=5)  # the others leave it something: they are 48 lanes
    desks.go(*first)
    later = [("requests", "day", "both", 10**6), ("in_flight", "", "both", 1000), ("tokens", "minute", "both", 10**9)]
    later += [("tokens", "minute", "input", 10**9), ("tokens", "day", "output", 10**9)]
    added = []
    for metric, per, counted, amount in later:
        hear(first[0], "settled")
        added.append(rule(model=chat_model, metric=metric, per=per, tokens=counted, amount=amount))
    desks.go(last)
    reports = desks.reports()
    until_left()
    assert deadlocks() == before
    assert [line for report in reports for line in quiet(report["heard"])] == []
    assert most_in_a_minute(lambda _: 1) <= 700
    for mine in (*shared, *added):
        decided_within(mine)
    daily = LimitCounter.objects.get(rule_id=added[0].pk, shard=0)
    assert total_used(added[0]) == UsageRecord.objects.filter(started_at__gte=daily.window_start).count()
    true_books()


def test_a_killed_process_leaves_no_holds_and_no_drift(
    desks: Desks, acme: APIKey, chat_model: Model, rule: MakeRule
) -> None:
    budget = rule(metric="spend", per="total", currency="USD", amount=150 * CHARGE, hold="hard")
    flight = rule(model=chat_model, metric="in_flight", per="", amount=16)
    minute = rule(metric="tokens", per="minute", amount=400 * TOKENS)
    (victim,) = desks.start(acme)
    (holder,) = desks.start(acme, lanes=3, linger=True)
    desks.start(acme, processes=2)
    desks.go(holder)
    for _ in range(3):
        hear(holder, "holding")
    desks.go(victim)
    hear(victim, "settled")
    desks.go()
    until_booked(30)
    desks.kill(holder)
    desks.kill(victim)
    reports = desks.reports()
    until_left()
    lost = Hold.objects.count()
    assert lost >= 3
    assert verify().drift == []
    assert sum(counter.held for counter in LimitCounter.objects.filter(rule_id=flight.pk)) == lost
    sweep(lease_seconds=0)
    assert sweep(lease_seconds=0) == lost
    assert WorkItem.objects.filter(kind="unknown", resolved_at=None).count() == lost
    true_books()
    charges = [record.charge for record in records()]
    assert total_used(budget) == sum(charges) <= 150 * CHARGE
    assert admitted(reports) < len(charges)
    for mine in (budget, flight, minute):
        decided_within(mine)


def test_what_is_sent_again_takes_only_once(desks: Desks, acme: APIKey, chat_model: Model, rule: MakeRule) -> None:
    day = rule(metric="requests", per="day", amount=150)
    minute = rule(model=chat_model, metric="tokens", per="minute", amount=10**6)
    flight = rule(metric="in_flight", per="", amount=40)
    desks.start(acme, processes=3, cut_every=4, patience=3, requests=60)
    reports = desks.run()
    assert any("is sent again" in line for report in reports for line in report["heard"])
    assert not any("deadlock" in line for report in reports for line in report["heard"])
    assert UsageRecord.objects.count() == admitted(reports) == 150
    assert total_used(day) == 150
    for mine in (day, minute, flight):
        decided_within(mine)
    true_books()
