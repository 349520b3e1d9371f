"""Server processes that move rows of their own from the first request on: still exact, to the last unit."""

from __future__ import annotations

import random

from gateway.catalogue.models import Model
from gateway.ledger.drift import check
from gateway.ledger.models import DriftFinding, Hold, UsageRecord
from gateway.ledger.sweeper import sweep
from gateway.ledger.verification import verify
from gateway.limits.models import LimitCounter, LimitRule
from tenants.models import APIKey
from tests.limits.test_processes import (
    CHARGE,
    TOKENS,
    Desks,
    MakeRule,
    admitted,
    deadlocks,
    decided_within,
    decisions_of,
    desks,
    hear,
    most_at_once,
    most_in_a_minute,
    quiet,
    records,
    total_used,
    true_books,
    until_booked,
    until_left,
)

__all__ = ["desks"]


def numbers(rule: LimitRule) -> set[int]:
    return set(LimitCounter.objects.filter(rule_id=rule.pk).values_list("shard", flat=True))


def test_a_hard_budget_in_rows_is_never_exceeded_and_used_to_its_end(
    desks: Desks, acme: APIKey, rule: MakeRule
) -> None:
    budget, before = 150 * CHARGE + 12_345, deadlocks()
    mine = rule(metric="spend", per="month", currency="USD", amount=budget, hold="hard")
    desks.start(acme, processes=3, shards=True)
    reports = desks.run()
    assert len(numbers(mine)) == 4
    assert sum(record.charge for record in records()) <= budget
    decided_within(mine)
    (ask,) = {int(row[8]) for row in decisions_of(mine)}
    assert most_at_once(lambda _: ask, lambda r: r.charge) <= budget
    assert (budget - ask) // CHARGE + 1 - 3 * 6 <= admitted(reports) <= budget // CHARGE
    assert sum(report["counts"].get("again", 0) for report in reports) == 0  # the writer's own affair
    assert [line for report in reports for line in quiet(report["heard"])] == []
    assert deadlocks() == before
    true_books()


def test_rates_and_flights_in_rows_are_exact(desks: Desks, acme: APIKey, chat_model: Model, rule: MakeRule) -> None:
    requests = rule(metric="requests", per="minute", amount=101)
    tokens = rule(model=chat_model, metric="tokens", per="minute", amount=10**6)
    flight = rule(metric="in_flight", per="", amount=5)
    desks.start(acme, processes=3, cap=40, lanes=4, patience=25, shards=True)
    reports = desks.run()
    for watched in (requests, tokens, flight):
        assert len(numbers(watched)) == 4
        decided_within(watched)
    assert most_in_a_minute(lambda _: 1) == 101 <= admitted(reports)
    assert most_at_once(lambda _: 1, lambda _: 0) <= 5
    true_books()


def test_a_killed_process_with_rows_leaves_no_holds_and_no_drift(
    desks: Desks, acme: APIKey, chat_model: Model, rule: MakeRule
) -> None:
    """And the limit is begun anew, and raised, while they are at it."""
    budget = rule(metric="spend", per="total", currency="USD", amount=120 * CHARGE, hold="hard")
    flight = rule(model=chat_model, metric="in_flight", per="", amount=16)
    minute = rule(metric="tokens", per="minute", amount=400 * TOKENS)
    (victim,) = desks.start(acme, shards=True)
    (holder,) = desks.start(acme, lanes=3, linger=True, shards=True)
    desks.start(acme)
    desks.start(acme, shards=True)
    desks.go(holder)
    for _ in range(3):
        hear(holder, "holding")
    desks.go(victim)
    hear(victim, "settled")
    desks.go()
    until_booked(20)
    desks.kill(holder)
    desks.kill(victim)
    until_booked(40)
    for enabled in (False, True):
        budget.enabled = enabled
        budget.amount += 15 * CHARGE
        budget.save()
    reports = desks.reports()
    until_left()
    lost = Hold.objects.count()
    assert lost >= 3
    assert verify().drift == []
    assert sum(counter.held for counter in LimitCounter.objects.filter(rule_id=flight.pk)) == lost
    sweep(lease_seconds=0)
    assert sweep(lease_seconds=0) == lost
    true_books()
    charges = [record.charge for record in records()]
    assert total_used(budget) == sum(charges)
    assert admitted(reports) < len(charges)
    for mine in (budget, flight, minute):
        decided_within(mine)
    LimitRule.objects.filter(pk=budget.pk).update(amount=10**15)
    desks.running.clear()
    desks.start(acme, processes=2, requests=10, patience=3, shards=True)
    desks.run()
    assert verify().drift == []
    assert total_used(budget) == sum(record.charge for record in records())


def test_limits_that_come_and_go_while_processes_work_count_all_and_no_more(
    desks: Desks, acme: APIKey, globex: APIKey, chat_model: Model, rule: MakeRule
) -> None:
    """Their counters start from the ledger again and again, in the middle of everything, and never drift."""
    before, draw = deadlocks(), random.Random(7)
    mine = [
        rule(metric="spend", per="total", currency="USD", amount=10**6 * CHARGE, hold="hard"),
        rule(metric="tokens", per="minute", amount=10**9),
        rule(model=chat_model, metric="in_flight", per="", amount=1000),
        rule(model=chat_model, metric="requests", per="minute", amount=10**6),
        rule(tenant=globex.tenant, metric="tokens", per="day", amount=10**9),
    ]
    desks.start(acme, globex, lanes=24, requests=10**6, shards=True)
    desks.start(acme, globex, lanes=24, requests=10**6)
    desks.go()
    for _ in range(30):
        changing = draw.choice(mine)
        for enabled in (False, True):
            changing.enabled = enabled
            changing.save()
            until_booked(UsageRecord.objects.count() + draw.randrange(20))
        check()
    for process in desks.running:
        desks.kill(process)
    desks.reports()
    until_left()
    sweep(lease_seconds=0)
    sweep(lease_seconds=0)
    assert list(DriftFinding.objects.all()) == []
    assert total_used(mine[0]) == sum(record.charge for record in records() if record.tenant_id == acme.tenant_id)
    assert deadlocks() == before
    true_books()


def test_what_is_sent_again_in_rows_takes_only_once(desks: Desks, acme: APIKey, rule: MakeRule) -> None:
    day = rule(metric="requests", per="day", amount=120)
    desks.start(acme, processes=3, cut_every=4, patience=3, requests=60, shards=True)
    reports = desks.run()
    assert any("is sent again" in line for report in reports for line in report["heard"])
    assert not any("deadlock" in line for report in reports for line in report["heard"])
    assert len(records()) == admitted(reports) == total_used(day) == 120
    true_books()
