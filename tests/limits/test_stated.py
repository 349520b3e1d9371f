"""Limits, plans and keys in `apply` files: declared, compared, removed; and nothing is done twice."""

from __future__ import annotations

from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from gateway.catalogue.apply import Refused, apply
from gateway.limits.models import Credit, LimitCounter, LimitRule, Plan, PlanMembership
from gateway.limits.windows import EVER
from tenants.models import APIKey, Tenant

NANO = 10**9
ISSUE = """
models:
  - id: acme-chat
    limits: [{metric: requests, per: minute, amount: 600}]
plans:
  - slug: gold
    name: Gold
    limits:
      - {metric: spend, per: month, currency: USD, amount: "20"}
tenants:
  - slug: acme
    plan: gold
    limits: [{metric: requests, per: minute, amount: 60}, {metric: tokens, per: minute, amount: 200000},
             {metric: in_flight, amount: 20}, {metric: spend, per: month, amount: "50.00", hold: hard}]
    keys:
      - name: laptop
        limits:
          - {metric: tokens, per: day, tokens: output, amount: 1000, model: acme-chat, mode: observe,
             on_shortage: fit, floor: 32, thresholds: [90, 50]}
"""


@pytest.fixture(autouse=True)
async def close_the_threads_connection() -> None:
    """These tests have no desk."""


@pytest.fixture
def laptop(db: None) -> APIKey:
    tenant = Tenant.objects.create(slug="acme", name="Acme", allowed_models=["*"])
    return APIKey.objects.create(public_id="acmeacmeacme", tenant=tenant, name="laptop")


def rules() -> set[tuple[Any, ...]]:
    return {(r.subject, r.metric, r.per, r.amount, r.currency) for r in LimitRule.objects.all()}


def problems_of(text: str) -> list[str]:
    before = list(LimitRule.objects.order_by("id").values())
    with pytest.raises(Refused) as refused:
        apply(text)
    assert list(LimitRule.objects.order_by("id").values()) == before
    return [f"{problem.line}: {problem.text}" for problem in refused.value.problems]


def tenant(limits: str, more: str = "") -> str:
    return f"tenants:\n  - slug: acme\n    limits: [{limits}]\n{more}"


def test_it_makes_the_limits_of_the_issue(laptop: APIKey) -> None:
    report = apply(ISSUE)
    assert rules() == {
        ("acme-chat", "requests", "minute", 600, ""),
        ("gold", "spend", "month", 20 * NANO, "USD"),
        ("acme", "requests", "minute", 60, ""),
        ("acme", "tokens", "minute", 200_000, ""),
        ("acme", "in_flight", "", 20, ""),
        ("acme", "spend", "month", 50 * NANO, "USD"),
        (f"{laptop} x acme-chat", "tokens", "day", 1000, ""),
    }
    rule = LimitRule.objects.get(key=laptop)
    assert (rule.tokens, rule.mode, rule.on_shortage, rule.floor, rule.thresholds) == (
        "output", "observe", "fit", 32, [50, 90]
    )  # fmt: skip
    assert LimitRule.objects.get(tenant=laptop.tenant, metric="spend").hold == "hard"
    assert PlanMembership.objects.get().plan == Plan.objects.get()
    lines = list(report.lines())
    assert "+ limit of tenant acme: spend per month in USD" in lines
    assert "    amount: 50.00 USD" in lines
    assert "+ limit of key laptop of acme, model acme-chat: output tokens per day" in lines
    assert "    plan: none -> gold" in lines


def test_it_has_nothing_to_do_the_second_time(laptop: APIKey) -> None:
    apply(ISSUE)
    history = LimitRule.history.count()
    version = Tenant.objects.get().version
    assert apply(ISSUE).empty
    assert (LimitRule.history.count(), Tenant.objects.get().version) == (history, version)


def test_a_dry_run_says_what_it_would_do_and_does_nothing(laptop: APIKey) -> None:
    assert "+ limit of model acme-chat: requests per minute" in apply(ISSUE, dry_run=True).lines()
    assert not LimitRule.objects.exists() and not Plan.objects.exists()


def test_a_list_states_all_limits_and_no_list_states_none(laptop: APIKey) -> None:
    apply(ISSUE)
    report = apply(tenant("{metric: in_flight, amount: 30}"))
    assert {r for r in rules() if r[0] == "acme"} == {("acme", "in_flight", "", 30, "")}
    assert "- limit of tenant acme: spend per month in USD" in report.lines()
    assert "    amount: 20 -> 30" in report.lines()
    assert report.summary() == "0 created, 1 changed, 3 removed, 1 unchanged."
    assert len(rules()) == 4  # the key's, the model's and the plan's are not the tenant's
    assert apply("tenants: [{slug: acme}]").summary() == "Nothing to do: 1 unchanged."
    apply(tenant(""))
    assert len(rules()) == 3


def test_a_changed_limit_is_the_same_rule_and_keeps_what_was_used(laptop: APIKey) -> None:
    apply(tenant("{metric: tokens, per: day, amount: 10}"))
    rule = LimitRule.objects.get()
    LimitCounter.objects.create(rule_id=rule.pk, window_start=EVER, used=7)
    apply(tenant("{metric: tokens, per: day, amount: 20, mode: observe}"))
    changed = LimitRule.objects.get()
    assert (changed.pk, changed.amount, changed.mode) == (rule.pk, 20, "observe")
    assert LimitCounter.objects.get().used == 7
    # What a limit leaves out has its usual value again.
    apply(tenant("{metric: tokens, per: day, amount: 20}"))
    assert LimitRule.objects.get().mode == "enforce"


def test_a_raise_stays_until_it_is_stated_otherwise(laptop: APIKey) -> None:
    apply(tenant('{metric: spend, per: day, amount: "5", raise: {amount: "9.5", until: 2099-01-01}}'))
    rule = LimitRule.objects.get()
    assert (rule.raised_amount, rule.raised_until) == (9_500_000_000, datetime(2099, 1, 1, tzinfo=UTC))
    assert apply(tenant('{metric: spend, per: day, amount: "5"}')).empty
    apply(tenant('{metric: spend, per: day, amount: "5", raise: null}'))
    assert LimitRule.objects.get().raised_amount is None


def test_a_plan_is_given_and_taken(laptop: APIKey) -> None:
    apply("plans: [{slug: gold}, {slug: silver}]\ntenants: [{slug: acme, plan: gold}]")
    report = apply("tenants: [{slug: acme, plan: silver}]")
    assert "    plan: gold -> silver" in report.lines()
    assert apply("tenants: [{slug: acme, plan: silver}]").empty
    apply("tenants: [{slug: acme, plan: null}]")
    assert not PlanMembership.objects.exists()


def test_keys_of_one_name_are_told_apart_by_id(laptop: APIKey) -> None:
    APIKey.objects.create(public_id="acmeacme2222", tenant=laptop.tenant, name="laptop")
    text = "tenants: [{slug: acme, keys: [{name: laptop, WHICH limits: [{metric: in_flight, amount: 1}]}]}]"
    (problem,) = problems_of(text.replace("WHICH", ""))
    assert problem.endswith("2 active keys named 'laptop': say which by id, one of acmeacme2222, acmeacmeacme.")
    apply(text.replace("WHICH", "id: acmeacme2222,"))
    assert LimitRule.objects.get().key.public_id == "acmeacme2222"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (tenant("{metric: requests, per: minute}"), "3: A limit needs 'amount'."),
        (tenant("{metric: request, per: minute, amount: 1}"), "3: metric: 'request' is not one of"),
        (tenant("{metric: requests, per: month, amount: 1}"), "3: per: A limit of requests is per minute or"),
        (tenant("{metric: requests, amount: 1}"), "3: per: A limit of requests is per minute or per day."),
        (tenant("{metric: in_flight, per: day, amount: 1}"), "3: per: Requests in flight have no window"),
        (tenant("{metric: spend, per: day, amount: 5}"), '3: amount: Amounts of spend are quoted, such as "5.00".'),
        (tenant("{metric: spend, per: day, amount: 5.5}"), '3: amount: Amounts are quoted, since YAML would make'),
        (tenant('{metric: tokens, per: day, amount: "5"}'), "3: amount: A limit of tokens is a whole number"),
        (tenant("{metric: tokens, per: day, amount: -5}"), "3: amount: A limit cannot be negative."),
        (tenant("{metric: tokens, per: day, amount: 1, hold: soft}"), "3: hold: 'soft' is not one of"),
        (tenant("{metric: requests, per: day, amount: 1, hold: hard}"), "3: hold: Requests are counted exactly"),
        (tenant("{metric: requests, per: day, amount: 1, on_shortage: fit}"), "3: on_shortage: A request cannot"),
        (tenant('{metric: spend, per: day, amount: "1", currency: EUR}'), "3: currency: acme is charged in USD"),
        (tenant("{metric: requests, per: day, amount: 1, model: x}"), "3: model: There is no model 'x'"),
        (tenant("{metric: requests, per: day, amount: 1, thresholds: [0]}"), "3: thresholds: Thresholds are"),
        (tenant("{metric: requests, per: day, amount: 1, raise: {amount: 5}}"), "3: raise: A raise is {amount"),
        (tenant('{metric: requests, per: day, amount: 1, raise: {amount: "5", until: 2099-01-01}}'),
         "3: raise: A limit of requests is a whole number"),
        (tenant("{metric: requests, per: day, amount: 1},\n {metric: requests, per: day, amount: 2}"),
         "4: This limit is stated already, on line 3."),
        (tenant("{metric: requests, pre: day, amount: 1}"), "3: A limit has no field 'pre'. Did you mean 'per'?"),
        ("tenants: [{slug: acme, plan: x}]", "1: plan: There is no plan 'x', neither here nor stored."),
        ("tenants: [{slug: acme, keys: [{name: phone, limits: []}]}]", "1: acme has no active key named 'phone'."),
        ('plans: [{slug: p, limits: [{metric: spend, per: day, amount: "1"}]}]', "1: currency: Say in which"),
        ("models: [{id: m, limits: [{metric: in_flight, amount: 1, model: m}]}]", "1: A limit has no field 'model'"),
    ],
)  # fmt: skip
def test_it_refuses(laptop: APIKey, text: str, expected: str) -> None:
    found = problems_of(text)
    assert any(problem.startswith(expected) for problem in found), found


def test_a_limit_with_credit_is_not_removed(laptop: APIKey) -> None:
    apply(tenant('{metric: spend, per: total, amount: "0"}'))
    Credit.objects.create(rule=LimitRule.objects.get(), amount=NANO)
    (problem,) = problems_of(tenant(""))
    assert problem.startswith("3: limits: The limit of tenant acme: spend in total in USD has credit")


def test_the_command_names_file_and_line(laptop: APIKey, tmp_path: Path) -> None:
    file = tmp_path / "acme.yaml"
    file.write_text(tenant("{metric: spend, per: hour, amount: '1'}"))
    err = StringIO()
    with pytest.raises(CommandError):
        call_command("apply", str(file), stdout=StringIO(), stderr=err)
    assert err.getvalue().startswith(f"{file}:3: per: 'hour' is not one of minute, day, week, month")


# ---- another currency ----

BUDGETS = """
tenants:
  - slug: acme
    currency: {0}
    limits: [{{metric: spend, per: month, amount: "{1}"}}, {{metric: requests, per: day, amount: 5}}]
    keys:
      - name: laptop
        limits: [{{metric: spend, per: day, amount: "3"}}]
"""


def test_one_file_changes_the_currency_and_its_limits(laptop: APIKey) -> None:
    apply(BUDGETS.format("USD", 50))
    daily = LimitRule.objects.get(metric="requests")
    report = apply(BUDGETS.format("EUR", 45))
    assert rules() == {
        ("acme", "spend", "month", 45 * NANO, "EUR"),
        ("acme", "requests", "day", 5, ""),
        (str(laptop), "spend", "day", 3 * NANO, "EUR"),
    }
    assert LimitRule.objects.get(metric="requests").pk == daily.pk
    assert [change.what for change in report.changes].count("removed") == 2
    assert Tenant.objects.get().currency == "EUR"
    assert apply(BUDGETS.format("EUR", 45)).empty


def test_a_dry_run_or_a_mistake_leaves_currency_and_limits(laptop: APIKey) -> None:
    apply(BUDGETS.format("USD", 50))
    before = rules()
    apply(BUDGETS.format("EUR", 45), dry_run=True)
    assert problems_of(BUDGETS.format("EUR", 45).replace("metric: requests, per: day", "metric: requests, per: week"))
    assert (rules(), Tenant.objects.get().currency) == (before, "USD")


def test_limits_that_the_file_does_not_state_stand_against_a_new_currency(laptop: APIKey) -> None:
    apply(BUDGETS.format("USD", 50))
    (problem,) = problems_of(
        'tenants: [{slug: acme, currency: EUR, limits: [{metric: spend, per: day, amount: "1"}]}]'
    )
    assert problem.startswith(f"1: currency: Limits in USD would never count again: spend per day of {laptop}.")
    assert "state the new currency and, beside it, the whole list of limits" in problem


def test_credit_in_the_old_currency_is_kept_in_a_limit_that_is_off(laptop: APIKey) -> None:
    apply(tenant('{metric: spend, per: total, amount: "0"}'))
    Credit.objects.create(rule=LimitRule.objects.get(), amount=NANO)
    moved = 'tenants: [{slug: acme, currency: EUR, limits: [OLD, {metric: spend, per: day, amount: "1"}]}]'
    old = '{metric: spend, per: total, amount: "0", currency: USD, enabled: false}'
    assert any(
        "limits with credit are disabled in a run before" in told for told in problems_of(moved.replace("OLD", old))
    )
    apply(tenant(old))
    (problem,) = problems_of(moved.replace("OLD, ", ""))
    assert problem.endswith("Keep it in the list with currency: USD, enabled: false.")
    apply(moved.replace("OLD", old))
    assert rules() == {("acme", "spend", "total", 0, "USD"), ("acme", "spend", "day", NANO, "EUR")}
    assert apply(moved.replace("OLD", old)).empty
    assert problems_of(moved.replace("OLD", old.replace("false", "true")))
