"""What makes no sense is refused where it is typed, with one text that says what to do."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from gateway.catalogue.apply import Refused, apply
from gateway.limits.models import Credit, LimitCounter, LimitRule
from gateway.limits.notices import LimitWarning
from gateway.limits.windows import EVER, window_at
from tenants.models import Tenant
from tests.billing import books
from tests.cast import acme, admin, browser
from tests.limits.test_tenancy import move, use

__all__ = ["acme", "admin", "browser"]

RULES = "/admin/limits/limitrule/"
CREDITS = "/admin/limits/credit/"
NANO = 10**9


@pytest.fixture(autouse=True)
async def close_the_threads_connection() -> None:
    """These tests have no desk."""


def errors_of(response: Any) -> dict[str, list[str]]:
    return {name: list(found) for name, found in response.context["adminform"].form.errors.items()}


def stated(limits: str, more: str = "") -> str:
    return f"tenants:\n  - slug: acme\n{more}    limits: [{limits}]"


def problems_of(text: str) -> list[str]:
    with pytest.raises(Refused) as refused:
        apply(text)
    return [f"{problem.line}: {problem.text}" for problem in refused.value.problems]


# ---- apply ----


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("metric: requests, per: day, amount: 1, tokens: input", "tokens: Only a limit of tokens says which"),
        ('metric: spend, per: day, amount: "1", tokens: input', "tokens: Only a limit of tokens says which"),
        ("metric: requests, per: day, amount: 1, currency: EUR", "currency: Only a limit of spend is in a currency"),
        ("metric: in_flight, amount: 1, currency: EUR", "currency: Only a limit of spend is in a currency"),
        ("metric: tokens, per: day, amount: 1, currency: USD", "currency: Only a limit of spend is in a currency"),
        ('metric: spend, per: month, amount: "1", fiscal_day: 5', "fiscal_day: Only a limit per fiscal_month has"),
        ("metric: tokens, per: day, amount: 1, floor: 64", "floor: A floor is for on_shortage: fit alone"),
        (
            'metric: spend, per: day, amount: "NaN"',
            "amount: 'NaN' is neither a whole number nor, for spend, an amount",
        ),
        ('metric: spend, per: day, amount: "1e400"', "amount: '1e400' is neither a whole number nor, for spend,"),
        ('metric: spend, per: day, amount: "-1.5"', "amount: A limit cannot be negative."),
        ("metric: tokens, per: day, amount: 1.5", "amount: A limit of tokens is a whole number, which 1.5 is not."),
        ("metric: tokens, per: day, amount: 9, raise: {amount: 5, until: 2099-01-01}", "raise: The limit allows 9"),
        ("metric: tokens, per: day, amount: 9, raise: {amount: 9, until: 2099-01-01}", "raise: The limit allows 9"),
        (
            "metric: tokens, per: day, amount: 9, raise: {amount: 99, until: 2020-01-01}",
            "raise: This is over already",
        ),
        (
            "metric: tokens, per: day, amount: 9, raise: {amount: 9.5, until: 2099-01-01}",
            "raise: A limit of tokens is",
        ),
    ],
)
def test_apply_refuses_what_it_would_drop_or_never_use(acme: Tenant, limit: str, expected: str) -> None:
    (problem,) = problems_of(stated(f"{{{limit}}}"))
    assert problem.startswith(f"3: {expected}")
    assert not LimitRule.objects.exists()


def test_a_raise_that_has_run_out_may_stay_in_the_file(acme: Tenant) -> None:
    until = timezone.now().replace(microsecond=0) + timedelta(days=1)
    text = "{metric: tokens, per: day, amount: AMOUNT, raise: {amount: 50, until: UNTIL}}"
    text = stated(text.replace("UNTIL", until.isoformat()))
    apply(text.replace("AMOUNT", "9"))
    (problem,) = problems_of(text.replace("AMOUNT", "60"))
    assert problem == "3: raise: The limit allows 60 already: give more."
    over = until - timedelta(days=2)
    LimitRule.objects.update(raised_until=over)
    text = text.replace(until.isoformat(), over.isoformat())
    assert apply(text.replace("AMOUNT", "9")).empty
    apply(text.replace("AMOUNT", "60"))
    assert LimitRule.objects.get().amount == 60
    assert problems_of(text.replace("AMOUNT", "60").replace("amount: 50", "amount: 70")) == [
        "3: raise: This is over already: give an end in the future, or leave the raise out."
    ]


def test_a_limit_that_cannot_be_read_is_not_said_to_be_removed(acme: Tenant) -> None:
    apply(stated('{metric: spend, per: total, amount: "0"}'))
    Credit.objects.create(rule=LimitRule.objects.get(), amount=NANO)
    assert problems_of(stated("{metric: spend, per: total, amount: 0}")) == [
        '3: amount: Amounts of spend are quoted, such as "0.00".'
    ]


def test_what_is_no_time_zone_is_refused_for_that_alone(browser: Client, acme: Tenant) -> None:
    use(LimitRule.objects.create(tenant=acme, metric="tokens", per="day", amount=10), acme)
    (problem,) = problems_of("tenants: [{slug: acme, timezone: Nowhere/X}]")
    assert "Nowhere/X" in problem and "window" not in problem
    assert len(move(browser, acme, timezone="Nowhere/X")["timezone"]) == 1


# ---- the admin ----


def test_a_limit_without_a_counter_is_not_said_to_be_unused(browser: Client, acme: Tenant) -> None:
    rule = LimitRule.objects.create(tenant=acme, metric="requests", per="day", amount=9)
    listed = browser.get(RULES).content.decode()
    assert "counted with the next request" in listed
    page = browser.get(f"{RULES}{rule.pk}/change/").content.decode()
    assert "Counted with the next request, 9 allowed" in page
    LimitCounter.objects.create(rule_id=rule.pk, window_start=EVER, used=2)
    assert "counted with the next request" not in browser.get(RULES).content.decode()
    assert "2 used, 0 held, 7 left of 9" in browser.get(f"{RULES}{rule.pk}/change/").content.decode()
    LimitCounter.objects.all().delete()
    LimitRule.objects.update(enabled=False)
    assert "not counted" in browser.get(RULES).content.decode()


def test_credit_has_its_end_in_the_future(browser: Client, acme: Tenant) -> None:
    rule = LimitRule.objects.create(tenant=acme, metric="spend", per="total", currency="USD", amount=0)
    past = {"expires_at_0": "2020-01-01", "expires_at_1": "00:00:00"}
    form = {"rule": rule.pk, "amount": "1", **past}
    assert "This is over already" in str(errors_of(browser.post(f"{CREDITS}add/", form))["expires_at"])
    credit = Credit.objects.create(rule=rule, amount=NANO)
    change = f"{CREDITS}{credit.pk}/change/"
    assert "This is over already" in str(errors_of(browser.post(change, past))["expires_at"])
    # One that has ended, and that the worker has not closed yet, can still be noted on.
    Credit.objects.update(expires_at="2020-01-01T00:00:00Z")
    assert browser.post(change, {**past, "note": "PO 9"}).status_code == 302
    assert Credit.objects.get().note == "PO 9"


@pytest.mark.parametrize("odd", ["63x", "9" * 30, "-", "\x00"])
def test_what_is_no_id_is_an_error_of_the_form(browser: Client, acme: Tenant, odd: str) -> None:
    assert "rule" in errors_of(browser.post(f"{CREDITS}add/", {"rule": odd, "amount": "1"}))
    assert "tenant" in errors_of(browser.post(f"{RULES}add/", {"tenant": odd, "metric": "requests"}))
    assert browser.get(f"{CREDITS}add/", {"rule": odd}).status_code == 200


def test_a_limit_that_is_there_is_refused_with_one_text(browser: Client, acme: Tenant) -> None:
    LimitRule.objects.create(tenant=acme, metric="requests", per="minute", amount=1)
    form = {"metric": "requests", "per": "minute", "tokens": "both", "amount": "60", "mode": "enforce"}
    form |= {"hold": "expected", "on_shortage": "refuse", "thresholds": "", "tenant": str(acme.pk)}
    assert set(errors_of(browser.post(f"{RULES}add/", form))) == {"metric"}


def test_a_warning_says_which_tokens(browser: Client, acme: Tenant) -> None:
    now = timezone.now()
    limit = {"subject": "acme", "metric": "tokens", "per": "day", "tokens": "output"}
    LimitWarning.objects.create(
        rule_id=1, tenant=acme, window_start=now, threshold=50, limit=limit, amount=2, used=1, held=0, created_at=now
    )
    assert "acme: output tokens per day" in browser.get("/admin/limits/limitwarning/").content.decode()


# ---- when a time zone may change ----


def test_the_date_is_that_of_the_latest_window_also_of_one_without_a_counter(browser: Client, acme: Tenant) -> None:
    key = books.key(acme)
    day = 1 + (timezone.now().astimezone(acme.zone).day + 13) % 28  # not tomorrow: the day's window ends then
    use(LimitRule.objects.create(tenant=acme, metric="requests", per="day", amount=10), acme)
    LimitRule.objects.create(
        tenant=acme, metric="spend", per="fiscal_month", currency="USD", amount=NANO, fiscal_day=day
    )
    (text,) = move(browser, acme, timezone="UTC")["timezone"]
    assert "requests per day of acme runs until" in text and "it is possible then at the earliest" in text
    books.record(key, timezone.now())
    (text,) = move(browser, acme, timezone="UTC")["timezone"]
    end = window_at("fiscal_month", timezone.now(), acme.zone, fiscal_day=day).end
    assert end is not None
    assert f"spend per fiscal month of acme runs until {end.astimezone(acme.zone):%Y-%m-%d %H:%M}" in text
