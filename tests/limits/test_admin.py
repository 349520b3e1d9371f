"""Limits in the admin: set, raised, topped up, read; nothing that was used or paid for is lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from gateway.catalogue.models import Model
from gateway.identifiers import uuid7
from gateway.limits.models import Credit, LimitCounter, LimitRule, Plan, PlanMembership
from gateway.limits.refusals_log import Refusal
from gateway.limits.windows import EVER
from tenants.models import APIKey, Tenant
from tests.billing import books
from tests.cast import acme, admin, browser, finance, globex

__all__ = ["acme", "admin", "browser", "finance", "globex"]

RULES = "/admin/limits/limitrule/"
CREDITS = "/admin/limits/credit/"
NANO = 10**9


@pytest.fixture(autouse=True)
async def close_the_threads_connection() -> None:
    """These tests have no desk."""


@pytest.fixture
def key(acme: Tenant) -> APIKey:
    return books.key(acme)


def errors_of(response: Any) -> dict[str, list[str]]:
    return {name: list(found) for name, found in response.context["adminform"].form.errors.items()}


def add(client: Client, **fields: Any) -> Any:
    usual = {"metric": "requests", "per": "minute", "tokens": "both", "amount": "60", "mode": "enforce"}
    usual |= {
        "hold": "expected",
        "on_shortage": "refuse",
        "floor": "16",
        "thresholds": "50, 80, 100",
        "enabled": "on",
    }
    return client.post(f"{RULES}add/", usual | fields)


def counted(rule: LimitRule, used: int, held: int = 0, **more: Any) -> LimitCounter:
    return LimitCounter.objects.create(rule_id=rule.pk, window_start=EVER, used=used, held=held, **more)


def test_it_sets_limits_on_tenants_keys_models_and_pairs(browser: Client, acme: Tenant, key: APIKey) -> None:
    model = Model.objects.create(public_id="acme-chat")
    for subject in (
        {"tenant": acme.pk},
        {"key": key.pk},
        {"model": model.pk},
        {"tenant": acme.pk, "model": model.pk},
    ):
        assert add(browser, **subject).status_code == 302
    assert LimitRule.objects.filter(metric="requests", per="minute", amount=60).count() == 4
    assert {rule.subject for rule in LimitRule.objects.all()} == {
        "acme", str(key), "acme-chat", "acme x acme-chat"
    }  # fmt: skip


def test_it_takes_spend_as_a_decimal_in_the_tenants_currency(browser: Client, globex: Tenant) -> None:
    assert add(browser, tenant=globex.pk, metric="spend", per="month", amount="50.05").status_code == 302
    rule = LimitRule.objects.get()
    assert (rule.amount, rule.currency) == (50_050_000_000, "EUR")
    page = browser.get(f"{RULES}{rule.pk}/change/").content.decode()
    assert 'value="50.05"' in page
    assert "50.05 EUR" in browser.get(RULES).content.decode()


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        ({}, "tenant", "Say whom it limits"),
        ({"tenant": "T", "key": "K"}, "key", "leave one of them empty"),
        (
            {"tenant": "T", "amount": "1.5"},
            "amount",
            "'1.5' is not a whole number. A limit of requests counts in ones.",
        ),
        ({"tenant": "T", "amount": "-1"}, "amount", "This cannot be negative."),
        ({"tenant": "T", "per": "month"}, "per", "A limit of requests is per minute or per day."),
        ({"tenant": "T", "metric": "spend", "per": "minute"}, "per", "per day or per week"),
        (
            {"tenant": "T", "metric": "spend", "per": "day", "amount": "many"},
            "amount",
            "Type an amount such as 50.00.",
        ),
        ({"tenant": "T", "metric": "spend", "per": "day", "currency": "EUR"}, "currency", "acme is charged in USD"),
        ({"model": "M", "metric": "spend", "per": "day"}, "currency", "Say in which currency"),
        ({"tenant": "T", "hold": "hard"}, "hold", "hard is for tokens and spend"),
        ({"tenant": "T", "on_shortage": "fit"}, "on_shortage", "fit is for tokens and spend"),
        ({"tenant": "T", "thresholds": "50, x"}, "thresholds", "Per cent of the limit"),
        ({"tenant": "T", "thresholds": "150"}, "thresholds", "from 1 to 100"),
    ],
)
def test_it_says_what_to_do(
    browser: Client, acme: Tenant, key: APIKey, fields: dict[str, str], field: str, text: str
) -> None:
    stand_ins = {"T": acme.pk, "K": key.pk, "M": Model.objects.create(public_id="m").pk}
    response = add(browser, **{name: stand_ins.get(value, value) for name, value in fields.items()})
    assert response.status_code == 200
    assert any(text in found for found in errors_of(response)[field]), errors_of(response)
    assert not LimitRule.objects.exists()


def test_it_refuses_the_same_limit_twice(browser: Client, acme: Tenant) -> None:
    add(browser, tenant=acme.pk)
    assert "There is such a limit already" in str(errors_of(add(browser, tenant=acme.pk, amount="5")))


def test_a_changed_amount_is_kept_beside_what_was_used(browser: Client, acme: Tenant) -> None:
    add(browser, tenant=acme.pk, metric="tokens", per="day", amount="100")
    rule = LimitRule.objects.get()
    counter = counted(rule, 70)
    # What it counts cannot change: a forged form changes the amount alone.
    url = f"{RULES}{rule.pk}/change/"
    form = {"metric": "requests", "per": "minute", "tokens": "input", "currency": "EUR", "amount": "200"}
    form |= {"mode": "observe", "hold": "hard", "on_shortage": "fit", "floor": "8", "thresholds": "", "enabled": "on"}
    assert browser.post(url, form).status_code == 302
    rule.refresh_from_db()
    assert (rule.metric, rule.per, rule.tokens, rule.amount, rule.mode) == ("tokens", "day", "both", 200, "observe")
    assert (rule.hold, rule.on_shortage, rule.floor, rule.thresholds) == ("hard", "fit", 8, [])
    counter.refresh_from_db()
    assert counter.used == 70
    assert rule.history.count() == 2
    assert browser.get(f"{RULES}{rule.pk}/history/").status_code == 200


def test_the_list_shows_what_is_used_held_and_left_now(browser: Client, acme: Tenant) -> None:
    rule = LimitRule.objects.create(tenant=acme, metric="spend", per="month", currency="USD", amount=50 * NANO)
    now = timezone.now()
    LimitCounter.objects.create(
        rule_id=rule.pk, window_start=now - timedelta(days=40), window_end=now - timedelta(days=9), used=40 * NANO
    )
    LimitCounter.objects.create(
        rule_id=rule.pk,
        window_start=now - timedelta(days=9),
        window_end=now + timedelta(days=9),
        used=12 * NANO + 1,
        held=NANO,
    )
    minute = LimitRule.objects.create(tenant=acme, metric="requests", per="minute", amount=60)
    at = int(now.timestamp())
    slots = [0] * 61
    slots[at % 61] = 7
    counted(minute, 0, slots=slots, slot_at=at)
    page = browser.get(RULES).content.decode()
    for text in ("12.000000001 USD", "1.00 USD", "36.999999999 USD", ">7<", ">53<"):
        assert text in page, text
    detail = browser.get(f"{RULES}{rule.pk}/change/").content.decode()
    assert "12.000000001 USD used, 1.00 USD held, 36.999999999 USD left of 50.00 USD" in detail


def test_lists_ask_as_little_for_many_as_for_few(browser: Client, acme: Tenant, key: APIKey) -> None:
    def fill(count: int) -> None:
        for n in range(count):
            model = Model.objects.create(public_id=f"m-{LimitRule.objects.count()}-{n}")
            rule = LimitRule.objects.create(
                tenant=acme, model=model, metric="spend", per="total", currency="USD", amount=1
            )
            Credit.objects.create(rule=rule, amount=5)
            counted(rule, 3)
            refusal(key, rule)
            plan = Plan.objects.create(slug=f"p{model.pk}", name="P")
            LimitRule.objects.create(plan=plan, metric="requests", per="day", amount=1)

    pages = [RULES, CREDITS, "/admin/limits/plan/", "/admin/limits/refusal/", "/admin/limits/limitcounter/"]
    fill(2)
    few = {page: queries(browser, page) for page in pages}
    fill(12)
    assert {page: queries(browser, page) for page in pages} == few
    assert max(few.values()) <= 12, few


def queries(client: Client, page: str) -> int:
    client.get(page)
    with CaptureQueriesContext(connection) as captured:
        assert client.get(page).status_code == 200
    return len(captured)


def refusal(key: APIKey, rule: LimitRule) -> Refusal:
    row = [rule.pk, 0, ord("c"), ord("s"), 1, 0, -1, 1, 2, 0, 0]
    return Refusal.objects.create(
        request_id=uuid7(), tenant=key.tenant, key=key, model="acme-chat", rule_id=rule.pk, at=timezone.now(),
        input_tokens=1, output_tokens=2, decided=[row],
    )  # fmt: skip


def test_an_early_refusal_is_listed_and_explained_with_its_reason(browser: Client, acme: Tenant, key: APIKey) -> None:
    rule = LimitRule.objects.create(tenant=acme, metric="tokens", per="day", amount=50, hold="hard")
    unsure = refusal(key, rule)
    row = [rule.pk, 0, ord("c"), ord("b"), 1, 0, 86_400, 50, -1, 0, 0]
    Refusal.objects.filter(pk=unsure.pk).update(reason="unbounded_output", decided=[row])
    unknown = refusal(key, rule)
    Refusal.objects.filter(pk=unknown.pk).update(reason="model_not_found", rule_id=0, decided=[])
    listed = browser.get("/admin/limits/refusal/").content.decode()
    assert "tokens per day</a>: unbounded_output" in listed
    assert "none: model_not_found" in listed
    page = browser.get("/admin/explain/", {"id": str(unsure.pk)}).content.decode()
    assert "cannot be sure of the request: its output has no bound." in page
    assert "Estimated at 1 + 2 tokens, refused." in page
    page = browser.get("/admin/explain/", {"id": str(unknown.pk)}).content.decode()
    assert "Refused before limits were looked at: there is no such model, or the key may not call it." in page
    assert "Estimated" not in page
    page = browser.get("/admin/explain/", {"id": str(uuid7())}).content.decode()
    assert "no refusal of it is kept" in page


def test_it_raises_a_limit_until_an_end_and_ends_the_raise(browser: Client, acme: Tenant) -> None:
    rule = LimitRule.objects.create(tenant=acme, metric="spend", per="day", currency="USD", amount=5 * NANO)
    url = f"{RULES}{rule.pk}/raise/"
    assert browser.get(url).status_code == 200
    for data, text in (
        ({"amount": "4", "until_0": "2099-01-01", "until_1": "00:00"}, "The rule allows 5.00 already"),
        ({"amount": "7", "until_0": "2001-01-01", "until_1": "00:00"}, "This is over already"),
    ):
        assert text in browser.post(url, data).content.decode()
    browser.post(url, {"amount": "7.50", "until_0": "2099-01-01", "until_1": "12:00"})
    rule.refresh_from_db()
    assert rule.raised_until == datetime(2099, 1, 1, 12, tzinfo=UTC)
    assert rule.amount_at(timezone.now()) == 7_500_000_000
    assert "7.50 USD" in browser.get(RULES).content.decode()
    assert browser.get(f"{url}end/").status_code == 200
    browser.post(f"{url}end/")
    rule.refresh_from_db()
    assert (rule.raised_amount, rule.raised_until) == (None, None)
    assert rule.history.count() == 3


def test_removing_a_rule_asks_first_and_credit_keeps_it(browser: Client, acme: Tenant) -> None:
    rule = LimitRule.objects.create(tenant=acme, metric="spend", per="total", currency="USD", amount=0)
    url = f"{RULES}{rule.pk}/delete/"
    assert "Are you sure" in browser.get(url).content.decode()
    credit = Credit.objects.create(rule=rule, amount=5)
    assert browser.post(url, {"post": "yes"}).status_code == 302
    assert LimitRule.objects.filter(pk=rule.pk).exists()
    credit.delete()
    browser.post(url, {"post": "yes"})
    assert not LimitRule.objects.exists()


def test_it_enables_and_disables(browser: Client, acme: Tenant) -> None:
    rule = LimitRule.objects.create(tenant=acme, metric="requests", per="day", amount=1)
    for action, enabled in (("disable", False), ("enable", True)):
        browser.post(RULES, {"action": action, "_selected_action": [rule.pk]})
        rule.refresh_from_db()
        assert rule.enabled is enabled


# ---- credit ----


def prepaid(tenant: Tenant) -> LimitRule:
    return LimitRule.objects.create(tenant=tenant, metric="spend", per="total", currency="USD", amount=0)


def test_it_tops_up(browser: Client, acme: Tenant) -> None:
    rule = prepaid(acme)
    form = {"rule": rule.pk, "amount": "100.5", "expires_at_0": "2099-01-01", "expires_at_1": "00:00", "note": "PO 7"}
    assert browser.post(f"{CREDITS}add/", form).status_code == 302
    credit = Credit.objects.get()
    assert (credit.amount, credit.note, credit.expires_at) == (
        100_500_000_000,
        "PO 7",
        datetime(2099, 1, 1, tzinfo=UTC),
    )
    assert "100.50 USD" in browser.get(CREDITS).content.decode()
    change = f"{CREDITS}{credit.pk}/change/"
    assert browser.get(change).status_code == 200
    browser.post(change, {"amount": "1", "note": "PO 8", "expires_at_0": "", "expires_at_1": ""})
    credit.refresh_from_db()
    assert (credit.amount, credit.note, credit.expires_at) == (100_500_000_000, "PO 8", None)


def test_a_top_up_needs_a_prepaid_limit_and_an_amount(browser: Client, acme: Tenant) -> None:
    monthly = LimitRule.objects.create(tenant=acme, metric="spend", per="month", currency="USD", amount=1)
    found = errors_of(browser.post(f"{CREDITS}add/", {"rule": monthly.pk, "amount": "0"}))
    assert "A top-up of nothing" in str(found["amount"])
    assert "Choose or add such a limit" in str(found["rule"])


def test_a_plans_limit_takes_no_credit_by_any_door(browser: Client, acme: Tenant) -> None:
    """It is counted per tenant: whose credit would expire unused?"""
    plan = Plan.objects.create(slug="gold", name="Gold")
    shared = LimitRule.objects.create(plan=plan, metric="spend", per="total", currency="USD", amount=0)
    monthly = LimitRule.objects.create(tenant=acme, metric="spend", per="month", currency="USD", amount=1)
    found = errors_of(browser.post(f"{CREDITS}add/", {"rule": shared.pk, "amount": "5"}))
    assert "Give the tenant a limit of spend in total of its own" in str(found["rule"])
    for rule in (shared, monthly):
        with pytest.raises(ValidationError) as refused:
            Credit(rule=rule, amount=5).full_clean()
        assert set(refused.value.message_dict) == {"rule"}
        with pytest.raises(IntegrityError, match="not a plan's"), transaction.atomic():
            Credit.objects.create(rule=rule, amount=5)
    credit = Credit.objects.create(rule=prepaid(acme), amount=5)
    with pytest.raises(IntegrityError), transaction.atomic():
        Credit.objects.filter(pk=credit.pk).update(rule=shared)


def test_credit_that_is_used_stays(browser: Client, acme: Tenant) -> None:
    rule = prepaid(acme)
    first, second = (Credit.objects.create(rule=rule, amount=100) for _ in range(2))
    counter = counted(rule, 100)
    assert browser.post(f"{CREDITS}{first.pk}/delete/", {"post": "yes"}).status_code == 302
    assert list(Credit.objects.all()) == [second]
    counter.used = 1
    counter.save()
    browser.post(f"{CREDITS}{second.pk}/delete/", {"post": "yes"})
    assert list(Credit.objects.all()) == [second]


# ---- plans ----


def test_a_plan_has_limits_and_tenants(browser: Client, acme: Tenant) -> None:
    form = {
        "name": "Gold", "slug": "gold",
        "rules-TOTAL_FORMS": "1", "rules-INITIAL_FORMS": "0",
        "rules-0-metric": "spend", "rules-0-per": "month", "rules-0-tokens": "both", "rules-0-amount": "20",
        "rules-0-currency": "USD", "rules-0-mode": "enforce", "rules-0-hold": "hard", "rules-0-on_shortage": "refuse",
        "memberships-TOTAL_FORMS": "1", "memberships-INITIAL_FORMS": "0", "memberships-0-tenant": acme.pk,
    }  # fmt: skip
    assert browser.post("/admin/limits/plan/add/", form).status_code == 302
    plan = Plan.objects.get()
    rule = plan.rules.get()
    assert (rule.amount, rule.currency, rule.hold, rule.fiscal_day, rule.floor) == (20 * NANO, "USD", "hard", 1, 16)
    assert PlanMembership.objects.get().tenant == acme
    page = browser.get(f"/admin/limits/plan/{plan.pk}/change/").content.decode()
    assert 'value="20.00"' in page
    browser.post(f"/admin/limits/plan/{plan.pk}/delete/", {"post": "yes"})
    assert Plan.objects.exists()
    assert browser.get(f"{RULES}{rule.pk}/change/").status_code == 200


# ---- pages ----


def test_finance_may_not_change_limits(client: Client, finance: Any, acme: Tenant) -> None:
    client.force_login(finance)
    rule = prepaid(acme)
    for page in (RULES, f"{RULES}{rule.pk}/raise/", f"{RULES}add/", "/admin/simulate/"):
        assert client.get(page).status_code == 403
    assert client.get("/admin/explain/").status_code == 200


def test_it_explains_from_the_admin(browser: Client, acme: Tenant, key: APIKey) -> None:
    rule = prepaid(acme)
    kept = refusal(key, rule)
    page = browser.get("/admin/explain/", {"id": f"req_{kept.request_id.hex}"}).content.decode()
    assert "Refused: it did not fit into spend in total of acme." in page
    assert "it can never fit" in page
    assert f"/admin/explain/?id={kept.request_id}" in browser.get("/admin/limits/refusal/").content.decode()
    assert 'id="not-found"' in browser.get("/admin/explain/", {"id": str(uuid7())}).content.decode()
    assert "This is no request id" in browser.get("/admin/explain/", {"id": "laptop"}).content.decode()
    record = books.record(key)
    page = browser.get("/admin/explain/", {"id": record.hex}).content.decode()
    assert "Admitted: no limit watched it." in page
    assert (
        f"/admin/explain/?id={record}" in browser.get(f"/admin/ledger/usagerecord/{record}/change/").content.decode()
    )


def test_it_simulates_from_the_admin(browser: Client, key: APIKey) -> None:
    page = browser.get("/admin/simulate/", {"key": key.public_id}).content.decode()
    assert f'value="{key.public_id}"' in page
    form = {"key": key.public_id, "model": "acme-chat", "input_tokens": "10", "output_tokens": "5"}
    assert "No. The model acme-chat does not exist" in browser.get("/admin/simulate/", form).content.decode()
    later = form | {"date": "2099-01-01", "time": "12:00"}
    assert browser.get("/admin/simulate/", later).status_code == 200
    for odd, text in (
        ({"date": "0001-01-01"}, "Give a day between 2000 and 2100."),
        ({"date": "9999-12-31"}, "Give a day between 2000 and 2100."),
        ({"output_tokens": "9" * 30}, "less than or equal to 1000000000"),
    ):
        assert text in browser.get("/admin/simulate/", form | odd).content.decode()
    wrong = browser.get("/admin/simulate/", form | {"key": "nobody", "time": "12:00"}).content.decode()
    assert "There is no API key with this public id." in wrong and "Give the day, too." in wrong


def test_tenants_and_keys_lead_to_their_limits(browser: Client, acme: Tenant, key: APIKey) -> None:
    page = browser.get(f"/admin/tenants/tenant/{acme.pk}/change/").content.decode()
    assert f"/admin/limits/limitrule/?tenant__id__exact={acme.pk}" in page
    page = browser.get(f"/admin/tenants/apikey/{key.pk}/change/").content.decode()
    assert f"/admin/limits/limitrule/?key__id__exact={key.pk}" in page
    assert f"/admin/simulate/?key={key.public_id}" in page
