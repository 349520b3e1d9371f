"""Whoever looks at a counter that has several rows sees their sum."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.core.exceptions import ValidationError
from django.test import Client
from django.utils import timezone

from gateway.ledger.explanation import explain
from gateway.ledger.items import Item
from gateway.ledger.simulator import simulate
from gateway.limits import warnings
from gateway.limits.admin.windows import with_use
from gateway.limits.facts import load_rules
from gateway.limits.models import Credit, LimitCounter, LimitRule, LimitWarning
from gateway.limits.standings import read_windows
from gateway.limits.tenancy import check_move
from tenants.models import APIKey, Tenant
from tests.cast import admin, browser
from tests.limits.processes import Process, process, settlement
from tests.limits.test_shard_races import ask

__all__ = ["admin", "ask", "browser", "process"]


@pytest.fixture
def used(
    acme: APIKey, rule: Callable[..., LimitRule], ask: Callable[..., Item], process: Callable[[int], Process]
) -> list[LimitRule]:
    """A day, a minute and flights, of which three processes have used 60 and hold 20; in flight: 1."""
    day = rule(metric="tokens", per="day", amount=100, thresholds=[50, 80, 100])
    minute = rule(metric="tokens", per="minute", amount=100)
    flight = rule(metric="in_flight", per="", amount=100)
    for shard in (1, 2, 3):
        one = process(shard)
        item = ask(one, 20, amount=100)
        (answer,) = one.decide(item)
        one.call(settlement(item, answer, tokens=20))
    (answer,) = one.decide(ask(one, 20, amount=100))
    assert answer[1] == "ok"
    assert LimitCounter.objects.filter(rule_id=day.pk).exclude(used=0, held=0).count() == 3
    LimitRule.objects.filter(pk=flight.pk).update(amount=200)
    return [day, minute, flight]


def test_what_a_key_is_told_is_the_sum(used: list[LimitRule], acme: APIKey) -> None:
    rules = load_rules(acme.tenant_id, acme.pk)
    windows = {window.rule.id: window for window in read_windows(rules, acme.tenant.zone)}
    day, minute, flight = (windows[rule.pk] for rule in used)
    assert (day.used, day.held, day.taken, day.left) == (60, 20, 80, 20)
    assert (minute.used, minute.taken, minute.left) == (80, 80, 20)
    assert 0 < minute.reset_ms <= 61_000
    assert flight.held == 20  # by what was asked


def test_the_admins_list_has_the_sum_and_one_owner(used: list[LimitRule], browser: Client) -> None:
    day, minute, _ = (with_use(LimitRule.objects.all()).get(pk=rule.pk).use for rule in used)
    assert day == {"used": 60, "held": 20, "most": 80, "owners": 1}
    assert (minute["used"] + minute["held"], minute["owners"]) == (80, 1)
    page = browser.get("/admin/limits/limitcounter/").content.decode()
    assert "process 3" in page


def test_warnings_are_of_the_sum(used: list[LimitRule]) -> None:
    warnings.look()
    found = LimitWarning.objects.get(rule_id=used[0].pk)
    assert (found.threshold, found.used, found.held) == (50, 60, 20)
    assert warnings.look() == 0


def test_the_simulator_answers_as_the_desk_does(
    used: list[LimitRule], acme: APIKey, ask: Callable[..., Item], process: Callable[[int], Process]
) -> None:
    def simulated(tokens: int) -> Any:
        now = datetime.now(UTC)
        return simulate(key=acme, model="acme-chat", input_tokens=tokens, output_tokens=0, at=now, now=now)

    assert simulated(20).allowed
    told = simulated(21)
    assert not told.allowed
    assert {step.decision.left for step in told.steps if step.decision.kind in "cm"} == {20}
    one = process(7)
    item = ask(one, 21, amount=100) | {"keep": 1}
    assert one.decide(item)[0][1] == "limited"
    explanation = explain(UUID(item["request_id"]))
    assert explanation is not None
    day = next(step.decision for step in explanation.steps if step.decision.rule_id == used[0].pk)
    assert (day.used, day.held, day.left, day.verdict) == (60, 20, 20, "refused")


def test_a_time_zone_stays_while_any_row_is_used(used: list[LimitRule], acme: APIKey) -> None:
    LimitCounter.objects.filter(shard=0).update(used=0, held=0)
    stored = Tenant.objects.get(pk=acme.tenant_id)
    with pytest.raises(ValidationError, match="window that has been used"):
        check_move(stored, Tenant(pk=stored.pk, timezone="UTC", currency=stored.currency))


def test_credit_expires_by_what_all_rows_have_used(
    acme: APIKey, rule: Callable[..., LimitRule], ask: Callable[..., Item], process: Callable[[int], Process]
) -> None:
    """And a request that a row's share would still hold is told that the credit is gone."""
    mine = rule(metric="spend", per="total", currency="USD", amount=10)
    credit = Credit.objects.create(rule=mine, amount=90, expires_at=timezone.now() + timedelta(hours=1))
    for shard in (1, 2):
        one = process(shard)
        item = ask(one, 20, amount=100)
        (answer,) = one.decide(item)
        one.call(settlement(item, answer, charge=20))
    Credit.objects.filter(pk=credit.pk).update(expires_at=timezone.now())
    one = process(1)
    assert one.decide(ask(one, 5, amount=10))[0][1] == "stale"  # closed, and asked again with what is left
    credit.refresh_from_db()
    assert (credit.expired_amount, credit.closed_at is None) == (50, False)
    amount = 10 + 90 - 50
    assert one.decide(ask(one, 11, amount=amount))[0][1] == "limited"
    assert one.decide(ask(one, 10, amount=amount))[0][1] == "ok"
