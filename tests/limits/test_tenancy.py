"""A tenant's time zone and currency do not change in the middle of a window that has been used."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from gateway.catalogue.apply import Refused, apply
from gateway.limits.models import LimitCounter, LimitRule, Plan, PlanMembership
from gateway.limits.windows import window_at
from tenants.models import Tenant
from tests.cast import acme, admin, browser, globex

__all__ = ["acme", "admin", "browser", "globex"]


@pytest.fixture(autouse=True)
async def close_the_threads_connection() -> None:
    """These tests have no desk."""


def use(rule: LimitRule, tenant: Tenant, *, used: int = 1, now: datetime | None = None) -> LimitCounter:
    window = window_at(rule.per, now or timezone.now(), tenant.zone)
    owner = tenant.pk if rule.plan_id else 0
    return LimitCounter.objects.create(
        rule_id=rule.pk, owner_id=owner, window_start=window.start, window_end=window.end, used=used
    )


def move(client: Client, tenant: Tenant, **fields: Any) -> dict[str, list[str]]:
    """What the admin's form refuses; empty: it was saved."""
    form = {"name": tenant.name, "status": tenant.status, "timezone": tenant.timezone, "currency": tenant.currency}
    response = client.post(f"/admin/tenants/tenant/{tenant.pk}/change/", form | {"allowed_models": "*"} | fields)
    if response.status_code == 302:
        return {}
    return {name: list(found) for name, found in response.context["adminform"].form.errors.items()}


def test_a_time_zone_stays_while_a_window_is_in_use(browser: Client, acme: Tenant) -> None:
    rule = LimitRule.objects.create(tenant=acme, metric="tokens", per="day", amount=10)
    counter = use(rule, acme)
    (text,) = move(browser, acme, timezone="UTC")["timezone"]
    end = counter.window_end.astimezone(acme.zone)  # type: ignore[union-attr]
    assert f"the limit of tokens per day of acme runs until {end:%Y-%m-%d %H:%M} (Europe/Berlin)" in text
    with pytest.raises(Refused) as refused:
        apply("tenants:\n- slug: acme\n  timezone: UTC")
    assert "3: timezone: The time zone cannot change in the middle" in f"{refused.value.problems[0].line}: " + str(
        refused.value.problems[0].text
    )
    assert move(browser, acme, name="Acme II") == {}  # anything else may change


@pytest.mark.parametrize("per", ["minute", "day"])
def test_what_is_unused_or_has_no_calendar_stands_in_nobodys_way(browser: Client, acme: Tenant, per: str) -> None:
    rule = LimitRule.objects.create(tenant=acme, metric="tokens", per=per, amount=10)
    use(rule, acme, used=0 if per == "day" else 5)
    if per == "day":
        use(rule, acme, now=timezone.now() - timedelta(days=2))
    assert move(browser, acme, timezone="UTC") == {}


def test_a_disabled_limit_lets_it_change(browser: Client, acme: Tenant) -> None:
    rule = LimitRule.objects.create(tenant=acme, metric="requests", per="day", amount=10)
    use(rule, acme)
    assert "timezone" in move(browser, acme, timezone="UTC")
    rule.enabled = False
    rule.save()
    assert move(browser, acme, timezone="UTC") == {}


def test_a_currency_stays_while_limits_count_in_it(browser: Client, acme: Tenant) -> None:
    rule = LimitRule.objects.create(tenant=acme, metric="spend", per="month", currency="USD", amount=10)
    (text,) = move(browser, acme, currency="EUR")["currency"]
    assert text == (
        "Limits in USD would never count again: spend per month of acme. Disable or remove them first, then change "
        "the currency, then set them in EUR. In a file: state the new currency and, beside it, the whole list of "
        "limits of the tenant and of these keys; limits with credit are disabled in a run before."
    )
    rule.delete()
    assert move(browser, acme, currency="EUR") == {}


def test_a_plans_limit_counts_too_but_not_a_neighbours_use_of_it(
    browser: Client, acme: Tenant, globex: Tenant
) -> None:
    plan = Plan.objects.create(slug="gold", name="Gold")
    rule = LimitRule.objects.create(plan=plan, metric="spend", per="total", currency="USD", amount=10)
    for tenant in (acme, globex):
        PlanMembership.objects.create(plan=plan, tenant=tenant)
    use(rule, globex)
    assert move(browser, acme, currency="EUR") == {}
    acme.refresh_from_db()
    use(rule, acme)
    (text,) = move(browser, acme, currency="USD")["currency"]
    assert "spend in total of gold is in use, which has no end" in text
