"""Limits that observe, a plan's and those for everybody, in rows of several processes."""

from __future__ import annotations

from collections.abc import Callable

from gateway.catalogue.models import Model
from gateway.ledger.items import Item
from gateway.ledger.verification import verify
from gateway.limits.models import LimitCounter, LimitRule, Plan, PlanMembership
from tenants.models import APIKey
from tests.limits.processes import Process, process
from tests.limits.test_shard_races import ask, end_all, rows, settle, verdicts

__all__ = ["ask", "process"]

MakeRule = Callable[..., LimitRule]
Start = Callable[[int], Process]
Admission = Callable[..., Item]


def test_a_limit_that_observes_refuses_nobody_and_counts_all(process: Start, ask: Admission, rule: MakeRule) -> None:
    mine = rule(metric="tokens", per="day", amount=99, mode="observe")
    one, two = process(1), process(2)
    items = [(one, ask(one, 90)), (two, ask(two, 90)), (one, ask(one, 90)), (two, ask(two, 90))]
    for by, item in items:
        (answer,) = by.decide(item)
        assert answer[1] == "ok"
        settle(by, item, answer, 50)
    assert sum(row.used for row in rows(mine).values()) == 200
    # It enforces from now on: what it counted is counted, in whichever row.
    LimitRule.objects.filter(pk=mine.pk).update(mode="enforce")
    assert verdicts(one.decide(ask(one, 1))) == ["limited"]
    assert verdicts(two.decide(ask(two, 1, amount=201))) == ["ok"]
    assert verdicts(one.decide(ask(one, 1, amount=201))) == ["limited"]


def test_a_plans_limit_is_each_tenants_own(
    process: Start, ask: Admission, acme: APIKey, globex: APIKey, rule: MakeRule
) -> None:
    plan = Plan.objects.create(slug="pro", name="Pro")
    for key in (acme, globex):
        PlanMembership.objects.create(plan=plan, tenant=key.tenant)
    mine = rule(plan=plan, metric="in_flight", per="", amount=3)
    one, two = process(1), process(2)
    items = [ask(by, 1, amount=3) for by in (one, two, one, two)]
    found = [by.decide(item)[0][1] for by, item in zip((one, two, one, two), items, strict=True)]
    assert sorted(found) == ["limited", "ok", "ok", "ok"]
    assert found[3] == "limited"
    assert {row.owner_id for row in LimitCounter.objects.filter(rule_id=mine.pk)} == {acme.tenant_id}
    end_all(one, *items[:3])
    assert sum(row.held for row in rows(mine).values()) == 0
    assert verify().drift == []


def test_a_limit_for_everybody_is_shared_by_row_too(
    process: Start, ask: Admission, chat_model: Model, rule: MakeRule
) -> None:
    mine = rule(model=chat_model, metric="requests", per="minute", amount=4)
    one, two = process(1), process(2)
    found = []
    for by in (one, two, one, two, one, two):
        item = ask(by, 1, amount=4, shard=by.shard)
        (answer,) = by.decide(item)
        found.append(answer[1])
        if answer[1] == "ok":
            settle(by, item, answer, 5)
    assert found == ["ok"] * 4 + ["limited"] * 2
    assert set(rows(mine)) == {0, 1, 2}
    assert sum(row.live or 0 for row in rows(mine).values()) == 4
    assert verify().drift == []
