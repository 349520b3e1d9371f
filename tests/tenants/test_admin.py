"""Tenants and keys in the admin: issued, shown once, rotated, revoked, never deleted."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tenants import keys
from tenants.admin import handover
from tenants.facts import load_callers
from tenants.models import APIKey, Tenant
from tenants.services import issue_key, revoke_key, rotate_key

KEYS = "/admin/tenants/apikey/"
SECRET = re.compile(r"sk-cf-[0-9A-Za-z]{12}-[0-9A-Za-z]{38}")


def issue(browser: Client, owner: Tenant, **fields: str) -> Any:
    data = {
        "tenant": owner.pk,
        "name": "shop",
        "allowed_models": "acme-*\nother",
        "expires_at_0": "",
        "expires_at_1": "",
    }
    return browser.post(f"{KEYS}add/", data | fields)


def secret_in(response: Any) -> str:
    found = set(SECRET.findall(response.content.decode()))
    assert len(found) == 1, found
    return found.pop()


def test_it_issues_a_key_and_shows_the_secret_once(browser: Client, acme: Tenant, admin: User) -> None:
    response = issue(browser, acme)

    key = APIKey.objects.get()
    page = f"{KEYS}{key.pk}/secret/"
    assert (response.status_code, response["Location"]) == (302, page)
    shown = browser.get(page)
    secret = secret_in(shown)
    assert keys.public_id_of(secret) == key.public_id
    assert load_callers([key.public_id])[key.public_id].has_digest(
        keys.digest(secret, settings.KEY_PEPPER.encode()), timezone.now()
    )
    assert (key.name, key.tenant, key.allowed_models, key.created_by) == ("shop", acme, ["acme-*", "other"], admin)
    assert "no-store" in shown["Cache-Control"]

    reloaded = browser.get(page)
    assert not SECRET.search(reloaded.content.decode())
    assert "cannot be shown again" in reloaded.content.decode()


def test_it_leaves_the_secret_nowhere_else(browser: Client, acme: Tenant, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    response = issue(browser, acme)
    cookie = response.cookies[handover.COOKIE]
    secret = secret_in(browser.get(response["Location"]))

    assert secret not in response["Location"] and secret not in str(response.headers) and secret not in cookie.value
    assert cookie["httponly"] and cookie["samesite"] == "Strict" and cookie["max-age"] == handover.SECONDS
    assert cookie["path"] == response["Location"]
    sessions = " ".join(str(session.get_decoded()) for session in Session.objects.all())
    entries = " ".join(f"{entry.object_repr} {entry.change_message}" for entry in LogEntry.objects.all())
    for place in (sessions, entries, str(APIKey.history.values_list()), caplog.text):
        assert secret[20:] not in place
    listed = (
        browser.get(KEYS).content.decode() + browser.get(f"{KEYS}{APIKey.objects.get().pk}/change/").content.decode()
    )
    assert secret[20:-6] not in html.unescape(listed)


def test_it_shows_the_secret_to_nobody_else(browser: Client, acme: Tenant) -> None:
    response = issue(browser, acme)
    stolen = response.cookies[handover.COOKIE].value
    eve = User.objects.create_superuser("eve", password="eve-password")
    other = Client()
    other.force_login(eve)
    other.cookies[handover.COOKIE] = stolen

    assert not SECRET.search(other.get(response["Location"]).content.decode())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": " "}, "This field is required."),
        ({"expires_at_0": "2020-01-01", "expires_at_1": "00:00"}, "in the past"),
        ({"tenant": ""}, "This field is required."),
    ],
)
def test_it_says_at_the_field_what_is_wrong(
    browser: Client, acme: Tenant, fields: dict[str, str], message: str
) -> None:
    response = issue(browser, acme, **fields)
    assert response.status_code == 200
    assert message in response.content.decode()
    assert not APIKey.objects.exists()


def test_it_issues_nothing_for_a_suspended_tenant(browser: Client, acme: Tenant) -> None:
    Tenant.objects.update(status="suspended")
    assert "acme is suspended" in issue(browser, acme).content.decode()
    assert not APIKey.objects.exists()


def test_it_rotates_with_an_overlap(browser: Client, acme: Tenant) -> None:
    key, old = issue_key(tenant=acme, name="shop")
    page = f"{KEYS}{key.pk}/rotate/"
    assert "1 hour" in browser.get(page).content.decode()

    response = browser.post(page, {"overlap": "3600"})
    new = secret_in(browser.get(response["Location"]))

    caller = load_callers([key.public_id])[key.public_id]
    digests = [keys.digest(text, settings.KEY_PEPPER.encode()) for text in (old, new)]
    assert [caller.has_digest(d, timezone.now()) for d in digests] == [True, True]
    assert [caller.has_digest(d, timezone.now() + timedelta(hours=2)) for d in digests] == [False, True]


def test_it_asks_before_it_revokes(browser: Client, acme: Tenant, admin: User) -> None:
    key, _ = issue_key(tenant=acme, name="shop")
    page = f"{KEYS}{key.pk}/revoke/"

    assert "cannot be undone" in browser.get(page).content.decode()
    assert APIKey.objects.get().is_live()
    response = browser.post(page, follow=True)

    assert not APIKey.objects.get().is_live()
    assert "refused from the next request on" in response.content.decode()
    assert key.history.latest().history_user == admin
    assert "/rotate/" not in response.content.decode()


def test_it_rotates_no_revoked_key(browser: Client, acme: Tenant, admin: User) -> None:
    key, _ = issue_key(tenant=acme, name="shop")
    revoke_key(key=key, by=admin)
    response = browser.post(f"{KEYS}{key.pk}/rotate/", {"overlap": "0"}, follow=True)
    assert "revoked or has expired" in response.content.decode()
    assert key.secrets.count() == 1


def test_it_refuses_politely_to_delete_keys_and_tenants_in_use(browser: Client, acme: Tenant) -> None:
    key, _ = issue_key(tenant=acme, name="shop")
    for page in (f"{KEYS}{key.pk}/delete/", f"/admin/tenants/tenant/{acme.pk}/delete/"):
        for response in (browser.get(page, follow=True), browser.post(page, {"post": "yes"}, follow=True)):
            assert response.status_code == 200
            assert "cannot be deleted" in response.content.decode()
    assert APIKey.objects.exists() and Tenant.objects.exists()


def test_it_deletes_a_tenant_that_was_a_mistake(browser: Client, acme: Tenant, globex: Tenant) -> None:
    browser.post(f"/admin/tenants/tenant/{acme.pk}/delete/", {"post": "yes"})
    assert list(Tenant.objects.all()) == [globex]


def test_it_restores_no_former_version(browser: Client, acme: Tenant, admin: User) -> None:
    key, _ = issue_key(tenant=acme, name="shop")
    revoke_key(key=key, by=admin)
    created = key.history.earliest()
    page = f"{KEYS}{key.pk}/history/{created.history_id}/"

    assert browser.get(page).status_code == 200
    assert browser.post(page, {"name": "shop", "allowed_models": "*"}).status_code == 403
    assert not APIKey.objects.get().is_live()


def grant(user: User, *names: str) -> Client:
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    client = Client()
    client.force_login(User.objects.get(pk=user.pk))
    return client


def test_it_honours_permissions(finance: User, acme: Tenant) -> None:
    key, _ = issue_key(tenant=acme, name="shop")
    pages = ("rotate/", "revoke/", "secret/", "change/")
    nobody = grant(finance)
    assert [nobody.get(f"{KEYS}{key.pk}/{page}").status_code for page in pages] == [403] * 4
    viewer = grant(finance, "view_apikey", "view_tenant")
    assert [viewer.get(f"{KEYS}{key.pk}/{page}").status_code for page in pages] == [403, 403, 200, 200]
    assert [viewer.post(f"{KEYS}{key.pk}/{page}").status_code for page in pages[:2]] == [403, 403]
    assert viewer.get(f"{KEYS}add/").status_code == 403
    assert "/revoke/" not in viewer.get(f"{KEYS}{key.pk}/change/").content.decode()
    assert viewer.get(f"{KEYS}{key.pk}/delete/").status_code in (302, 403)
    assert APIKey.objects.get().is_live()
    anonymous = Client()
    assert anonymous.get(f"{KEYS}{key.pk}/secret/")["Location"].startswith("/admin/login/")


def test_it_finds_keys_by_id_last_characters_name_and_tenant(browser: Client, acme: Tenant, globex: Tenant) -> None:
    key, first = issue_key(tenant=acme, name="web shop")
    issue_key(tenant=globex, name="intranet")
    second = rotate_key(key=key, overlap=timedelta(0))

    def names(term: str) -> list[str]:
        page = browser.get(KEYS, {"q": term})
        return [row.name for row in page.context["cl"].result_list]

    for term in (
        key.public_id,
        key.public_id[:6],
        first[-4:],
        second[-4:],
        f"…{second[-4:]}",
        "Web sh",
        "acme",
        second,
    ):
        assert names(term) == ["web shop"], term
    assert names("nothing-like-it") == []
    assert [row.name for row in browser.get(KEYS, {"tenant__id__exact": globex.pk}).context["cl"].result_list] == [
        "intranet"
    ]


def queries(browser: Client, path: str) -> int:
    browser.get(path)  # content types and the like are cached after the first time
    with CaptureQueriesContext(
        connection,
    ) as captured:
        assert browser.get(path).status_code == 200
    return len(captured)


def test_it_lists_many_keys_with_as_many_queries_as_one(browser: Client, acme: Tenant, globex: Tenant) -> None:
    issue_key(tenant=acme, name="first")
    few = {path: queries(browser, path) for path in (KEYS, "/admin/tenants/tenant/")}
    for number in range(12):
        issue_key(tenant=globex if number % 2 else acme, name=f"key {number}")
        Tenant.objects.create(slug=f"t{number}", name="T")

    assert {path: queries(browser, path) for path in few} == few
    assert few[KEYS] <= 9


def test_it_takes_a_tenant_with_its_models_one_a_line(browser: Client) -> None:
    data = {
        "slug": "initech", "name": "Initech", "status": "active", "timezone": "Asia/Kolkata", "currency": "INR",
        "billing_contact": "", "allowed_models": "acme-*\r\nother:1, third",
    }  # fmt: skip
    assert browser.post("/admin/tenants/tenant/add/", data).status_code == 302
    tenant = Tenant.objects.get()
    assert (tenant.timezone, tenant.currency) == ("Asia/Kolkata", "INR")
    assert tenant.allowed_models == ["acme-*", "other:1", "third"]
    page = browser.get(f"/admin/tenants/tenant/{tenant.pk}/change/").content.decode()
    assert "acme-*\nother:1\nthird" in page
    bad = browser.post("/admin/tenants/tenant/add/", data | {"slug": "x", "timezone": "Mars/Base", "currency": "XXX"})
    assert bad.content.decode().count("is not one of the available choices") == 2
