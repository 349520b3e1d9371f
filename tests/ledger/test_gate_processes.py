"""Gates in several processes at once: never too much, never too little, whatever dies or is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from django.db import connection

from gateway.ledger.models import Gate as Row
from gateway.ledger.models import Hold, UsageRecord
from gateway.ledger.sweeper import sweep
from gateway.limits.models import LimitCounter, LimitRule, Refusal
from tenants.models import APIKey
from tests.limits.conftest import rule  # noqa: F401
from tests.limits.test_processes import Desks, admitted, deadlocks, desks, hear, tell, true_books  # noqa: F401

IN_FLIGHT = [71, 1, 0, 0, 3]
TOKENS = 30  # of a request of the desks' processes: 10 in, 20 out


def records(deployment: int) -> list[Any]:
    return list(UsageRecord.objects.filter(deployment_id=deployment).order_by("started_at"))


def most_at_once(found: Iterable[Any]) -> int:
    """By the records' own times, which lie within what was held."""
    events = sorted(event for r in found for event in ((r.started_at, 1), (r.ended_at, -1)))
    running = most = 0
    for _, change in events:
        running += change
        most = max(most, running)
    return most


def most_in_a_minute(found: list[Any]) -> int:
    starts = [record.started_at for record in found]
    return max(sum(start <= other < start + timedelta(seconds=60) for other in starts) for start in starts)


def test_processes_never_have_more_in_flight_and_use_all_of_it(desks: Desks, acme: APIKey) -> None:  # noqa: F811
    before = deadlocks()
    desks.start(acme, processes=2, gates=[IN_FLIGHT], lanes=4, requests=25, patience=10**6)
    reports = desks.run()
    true_books()
    assert admitted(reports) == len(records(71)) == 2 * 4 * 25 - sum(r["counts"].get("full", 0) for r in reports)
    assert most_at_once(records(71)) == 3
    assert all(report["counts"]["full"] for report in reports)
    assert not Refusal.objects.exists()
    assert deadlocks() == before


def test_processes_pass_no_more_than_the_rate(desks: Desks, acme: APIKey) -> None:  # noqa: F811
    gates = [[71, 1, 40, 0, 0], [72, 2, 0, 25 * 110, 0]]  # 110: what a request is expected to need at most
    desks.start(acme, processes=2, gates=gates, lanes=6, requests=100, patience=12, cut_every=7)
    desks.run()
    true_books()
    assert most_in_a_minute(records(71)) == len(records(71)) == 40
    assert len(records(72)) >= 25
    row = Row.objects.get(pk=72)
    assert sum(row.tokens) == len(records(72)) * TOKENS <= 25 * 110
    assert sum(Row.objects.get(pk=71).requests) == 40


def test_moves_and_plain_requests_race_without_deadlocks(desks: Desks, acme: APIKey, globex: APIKey) -> None:  # noqa: F811
    before = deadlocks()
    shared = {"lanes": 3, "requests": 20, "patience": 10**6}
    desks.start(acme, globex, gates=[[73, 3, 0, 10**6, 5], IN_FLIGHT], moves_to=[IN_FLIGHT], cut_every=9, **shared)
    desks.start(globex, acme, gates=[IN_FLIGHT, [73, 3, 0, 10**6, 5]], moves_to=[[73, 3, 0, 10**6, 5]], **shared)
    desks.start(acme, **shared)
    reports = desks.run()
    true_books()
    assert deadlocks() == before
    assert sum(report["counts"].get("moved", 0) for report in reports) > 0
    assert sum(Row.objects.get(pk=73).tokens) == TOKENS * UsageRecord.objects.filter(deployment_id=73).count()


def test_who_is_refused_by_a_limit_has_taken_nothing_of_the_gate(
    desks: Desks,  # noqa: F811
    acme: APIKey,
    globex: APIKey,
    rule: Callable[..., LimitRule],  # noqa: F811
) -> None:
    budget = rule(metric="requests", per="day", amount=20)
    desks.start(acme, globex, processes=2, gates=[[71, 1, 60, 0, 0]], lanes=3, requests=40, patience=30)
    desks.run()
    true_books()
    assert UsageRecord.objects.filter(tenant=acme.tenant).count() == 20
    assert UsageRecord.objects.filter(tenant=globex.tenant).count() == 40
    assert sum(int(c.used) for c in LimitCounter.objects.filter(rule_id=budget.pk)) == 20
    assert sum(Row.objects.get(pk=71).requests) == 60


def test_what_a_killed_process_had_in_flight_is_free_after_the_sweep(desks: Desks, acme: APIKey) -> None:  # noqa: F811
    (doomed,) = desks.start(acme, gates=[IN_FLIGHT], lanes=3, requests=1, linger=True)
    hear(doomed, "ready")
    tell(doomed, "go")
    for _ in range(3):
        hear(doomed, "holding")
    desks.kill(doomed)
    doomed.communicate()
    for _ in range(2):
        with connection.cursor() as cursor:
            cursor.execute("UPDATE ledger_process SET heartbeat_at = heartbeat_at - interval '1 hour'")
            cursor.execute("UPDATE ledger_process SET suspected_at = suspected_at - interval '1 hour'")
        sweep()
    assert not Hold.objects.exists()
    desks.running.clear()
    (heir,) = desks.start(acme, gates=[IN_FLIGHT], lanes=3, requests=5, patience=10**6)
    hear(heir, "ready")
    tell(heir, "go")
    (report,) = desks.reports()
    assert report["counts"]["ok"] == 15 and "full" not in report["counts"]
