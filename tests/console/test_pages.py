"""The console's own pages: dashboard, sidebar, live feed, people."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib import admin as django_admin
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from rest_framework.authtoken.models import Token

from gateway.billing.models import RollupState, UsageHour
from gateway.console.dashboard import today
from gateway.console.navigation import groups
from tenants.admin import handover
from tenants.models import APIKey, Tenant
from tests.billing import books

NOW = datetime(2026, 11, 22, 15, 30, tzinfo=UTC)


def text_of(response: Any) -> str:
    return str(response.content.decode())


def request_of(user: User, rf: Any) -> Any:
    request = rf.get("/admin/")
    request.user = user
    return request


def hour(key: APIKey, at: datetime, **fields: Any) -> None:
    sums = {"requests": 10, "errors": 1, "input_tokens": 1000, "output_tokens": 234, "charge": 1_500_000_000}
    facts = {"model": "acme-chat", "charge_currency": "USD", "local_date": at.date(), "hour": at}
    UsageHour.objects.create(tenant=key.tenant, key=key, **(facts | sums | fields))


@pytest.fixture
def keys(acme: Tenant, globex: Tenant) -> tuple[APIKey, APIKey]:
    return books.key(acme), books.key(globex)


# ---- dashboard ----


def test_it_shows_todays_figures(rf: Any, admin: User, keys: tuple[APIKey, APIKey]) -> None:
    at = NOW.replace(minute=0)
    hour(keys[0], at)
    hour(keys[0], at - timedelta(hours=2), requests=30, errors=0, kind="")
    hour(keys[0], at, kind="correction", requests=0, errors=0, input_tokens=-4, output_tokens=0, charge=-500_000_000)
    hour(keys[1], at, charge_currency="EUR", charge=1)
    hour(keys[1], at - timedelta(days=1), requests=7)
    RollupState.objects.create(name="usage", moved_at=NOW)

    figures = today(request_of(admin, rf), NOW)

    assert (figures["requests"], figures["errors"]) == (50, 2)
    assert figures["tokens"] == 3 * 1234 - 4
    assert figures["charges"] == [
        {"currency": "EUR", "amount": "0.000000001", "exact": "0.000000001"},
        {"currency": "USD", "amount": "2.50", "exact": "2.50"},
    ]
    assert figures["top_tenants"] == [
        {"name": "acme", "requests": 40, "errors": 1},
        {"name": "globex", "requests": 10, "errors": 1},
    ]
    assert len(figures["bars"]) == 24
    assert [bar["requests"] for bar in figures["bars"]][-3:] == [30, 0, 20]
    assert all(0 <= bar["bad"] + bar["good"] <= 100 for bar in figures["bars"])
    assert figures["counted_at"] == NOW


def test_it_says_what_a_new_installation_needs(browser: Client) -> None:
    page = text_of(browser.get("/admin/"))
    assert "To the first answer" in page and "Add a provider" in page and "No requests yet today." in page
    assert browser.get(reverse("admin:catalogue_provider_add")).status_code == 200


def test_it_asks_the_database_little_for_the_dashboard(browser: Client, keys: tuple[APIKey, APIKey]) -> None:
    browser.get("/admin/")
    with CaptureQueriesContext(connection) as captured:
        browser.get("/admin/")
    assert len(captured) <= 19
    assert not any("ledger_usagerecord" in query["sql"] for query in captured)


def test_it_shows_no_figures_to_those_who_may_not_see_usage(db: None, keys: tuple[APIKey, APIKey]) -> None:
    user = User.objects.create_user("bob", is_staff=True)
    client = Client()
    client.force_login(user)
    page = text_of(client.get("/admin/"))
    assert "Requests today" not in page and "Live feed" not in page
    assert client.get("/admin/live/").status_code == 403
    assert Client().get("/admin/live/").status_code == 302


# ---- sidebar and assets ----


def test_it_lists_every_registered_model_in_the_sidebar(rf: Any, admin: User) -> None:
    links = {item["link"] for group in groups(request_of(admin, rf)) for item in group["items"]}
    for model in django_admin.site._registry:
        assert reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist") in links


def test_it_lists_only_what_one_may_view(rf: Any, finance: User) -> None:
    titles = [item["title"] for group in groups(request_of(finance, rf)) for item in group["items"]]
    pages = ["Dashboard", "Live feed", "Export usage", "Explain a request"]
    assert titles == [*pages, "Usage records", "Adjustments", "Work queue"]


def test_it_serves_every_list_and_every_form(browser: Client) -> None:
    for model in django_admin.site._registry:
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        assert browser.get(reverse(f"{name}_changelist")).status_code == 200, name
        assert browser.get(reverse(f"{name}_add")).status_code in (200, 403), name


def test_it_loads_nothing_from_elsewhere(browser: Client, acme: Tenant) -> None:
    pages = ["/admin/", "/admin/live/", "/admin/tenants/tenant/add/", f"/admin/tenants/tenant/{acme.pk}/change/"]
    for page in pages:
        for source in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"]+)"', text_of(browser.get(page))):
            assert source.startswith("/"), source
            path = source.partition("?")[0]
            if path.startswith("/static/"):
                assert finders.find(path.removeprefix("/static/")), source
    for name in ("console.css", "copy.js", "live.js"):
        found = finders.find(f"console/{name}")
        assert isinstance(found, str)
        assert not re.search(r"https?://", Path(found).read_text())


# ---- live feed ----


def test_it_begins_the_feed_with_the_newest_records(browser: Client, keys: tuple[APIKey, APIKey]) -> None:
    request_id = books.record(keys[0], NOW - timedelta(days=10), model="</script><b>")
    page = text_of(browser.get("/admin/live/"))
    assert str(request_id) in page and "data-socket=" in page
    assert "</script><b>" not in page


# ---- people ----


def test_it_gives_a_token_and_shows_it_once(browser: Client, finance: User) -> None:
    page = f"/admin/auth/user/{finance.pk}/token/"
    assert "Give a token" in text_of(browser.get(page))
    response = browser.post(page)
    token = Token.objects.get(user=finance)

    assert token.key not in response["Location"] and token.key not in response.cookies[handover.COOKIE].value
    assert token.key in text_of(browser.get(response["Location"]))
    assert token.key not in text_of(browser.get(response["Location"]))
    assert token.key not in text_of(browser.get(f"/admin/auth/user/{finance.pk}/change/"))
    assert f"…{token.key[-4:]}" in text_of(browser.get(f"/admin/auth/user/{finance.pk}/change/"))

    browser.post(page)
    assert Token.objects.get(user=finance).key != token.key
    browser.post(f"{page}revoke/")
    assert not Token.objects.exists()


def test_it_lets_nobody_give_themselves_a_stronger_ones_token(finance: User, admin: User) -> None:
    from django.contrib.auth.models import Permission

    client = Client()
    client.force_login(finance)
    assert client.post(f"/admin/auth/user/{finance.pk}/token/").status_code == 403
    finance.user_permissions.set(Permission.objects.filter(codename__in=["change_user", "view_user", "add_token"]))
    assert client.post(f"/admin/auth/user/{admin.pk}/token/").status_code == 403
    assert client.post(f"/admin/auth/user/{finance.pk}/token/").status_code == 302
