"""What was tried, in the admin: on the record's page and in a list; and what limited deployments have in use."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from gateway.catalogue.models import Deployment, Model, Provider
from gateway.ledger.gates import live
from gateway.ledger.models import Gate
from tenants.models import APIKey, Tenant
from tests.billing import books
from tests.console.test_books import NOON, RECORDS, text_of

ATTEMPTS = "/admin/ledger/attempt/"
GATES = "/admin/ledger/gate/"


@pytest.fixture
def key(acme: Tenant) -> APIKey:
    return books.key(acme)


@pytest.fixture
def deployment(transactional_db: None) -> Deployment:
    provider = Provider.objects.create(name="north-llm", protocol="echo")
    model = Model.objects.create(public_id="north-chat")
    return Deployment.objects.create(model=model, provider=provider, upstream_model="n", rpm=60, max_in_flight=4)


def listed(client: Client, **asked: Any) -> list[tuple[int, str]]:
    response = client.get(ATTEMPTS, asked)
    assert response.status_code == 200, response["Location"]
    return [(attempt.number, attempt.outcome) for attempt in response.context["cl"].result_list]


def test_a_record_shows_what_was_tried_for_it(browser: Client, key: APIKey, deployment: Deployment) -> None:
    mine = books.record(key, NOON, served_model="acme-small")
    place = {"deployment_id": deployment.pk, "provider_id": deployment.provider_id}
    books.attempt(key, mine, 1, NOON, outcome="status_503", cost=70, output_tokens=1, **place)
    books.attempt(
        key, mine, 2, NOON + timedelta(milliseconds=140), outcome="ok", served=True, cost=300_000, model="acme-small",
        provider_id=4242, first_byte_at=NOON + timedelta(milliseconds=190), input_tokens=1200, output_tokens=550,
    )  # fmt: skip
    page = text_of(browser.get(f"{RECORDS}{mine}/change/"))
    for shown in (
        *(f"north-llm ({deployment.pk})", "provider 4242 (1)", "status_503", "ok (served)", "acme-small"),
        *("140 ms", "50 ms", "100 ms", "1,200 + 550", "0.0003 USD", "Cost of failed attempts: 0.00000007 USD"),
    ):
        assert shown in page
    assert "acme-chat → acme-small" in text_of(browser.get(RECORDS))


def test_a_plain_record_says_that_it_was_the_only_attempt(browser: Client, key: APIKey) -> None:
    mine = books.record(key, NOON)
    assert "one, of which the record says all" in text_of(browser.get(f"{RECORDS}{mine}/change/"))
    assert " → " not in text_of(browser.get(RECORDS))


def test_attempts_are_filtered_by_where_how_and_when(browser: Client, key: APIKey, deployment: Deployment) -> None:
    first, second = books.record(key, NOON), books.record(key, NOON + timedelta(days=1))
    books.attempt(key, first, 1, NOON, outcome="timeout", provider_id=deployment.provider_id)
    books.attempt(key, first, 2, NOON, outcome="ok", deployment_id=deployment.pk)
    books.attempt(key, second, 1, NOON + timedelta(days=1), model="other-model")

    assert listed(browser) == [(1, "connect"), (1, "timeout"), (2, "ok")]
    assert listed(browser, deployment=deployment.pk) == [(2, "ok")]
    assert listed(browser, provider=deployment.provider_id) == [(1, "timeout")]
    assert listed(browser, outcome="connect") == [(1, "connect")]
    assert listed(browser, model="other-model") == [(1, "connect")]
    assert listed(browser, started_at_from="2026-11-11") == [(1, "connect")]
    assert listed(browser, started_at_to="2026-11-10") == [(1, "timeout"), (2, "ok")]
    assert listed(browser, started_at_from="nonsense", q=str(first)) == [(1, "timeout"), (2, "ok")]
    assert listed(browser, tenant__id__exact=key.tenant_id + 1) == []
    assert "north-llm" in text_of(browser.get(ATTEMPTS))


def test_nobody_writes_them(browser: Client, key: APIKey) -> None:
    for page in (ATTEMPTS, GATES):
        assert browser.get(f"{page}add/").status_code == 403
        assert browser.get(page).status_code == 200


def test_they_are_for_who_may_see_them(client: Client, key: APIKey) -> None:
    user = User.objects.create_user("fiona", password="x", is_staff=True)
    client.force_login(user)
    assert client.get(ATTEMPTS).status_code == client.get(GATES).status_code == 403
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_attempt", "view_gate"]))
    assert client.get(ATTEMPTS).status_code == client.get(GATES).status_code == 200


def test_it_shows_what_a_deployment_has_in_use(browser: Client, deployment: Deployment) -> None:
    at = int(time.time())
    slots = [0] * 61
    slots[at % 61] = 12
    Gate.objects.create(
        deployment_id=deployment.pk, requests=slots, requests_live=12, tokens=slots, tokens_live=12, slot_at=at
    )
    Gate.objects.create(
        deployment_id=999_999, requests=slots, requests_live=12, tokens=slots, tokens_live=12, slot_at=at
    )
    page = text_of(browser.get(GATES))
    for shown in ("north-chat at north-llm", "12 of 60", "12, not limited", "0 of 4", "removed (999999)"):
        assert shown in page
    index = text_of(browser.get("/admin/"))
    assert "Deployment limits" in index and "Attempts" in index


@pytest.mark.parametrize(("later", "left"), [(0, 6), (60, 6), (61, 4), (118, 4), (120, 3), (121, 0), (-30, 6)])
def test_slots_leave_after_a_minute(later: int, left: int) -> None:
    """Two at second 100, one at 158, three at 160."""
    slots = [0] * 61
    slots[100 % 61], slots[158 % 61], slots[160 % 61] = 2, 1, 3
    assert live(slots, 160, 100 + later) == left
