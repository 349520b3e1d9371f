"""Warnings, their deliveries, webhooks and drift in the admin."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from gateway.ledger import drift
from gateway.ledger.models import Counter
from gateway.limits.models import Delivery, LimitWarning, WebhookEndpoint
from tenants.models import Tenant


@pytest.fixture
def warning(acme: Tenant) -> LimitWarning:
    now = timezone.now()
    return LimitWarning.objects.create(
        rule_id=1,
        tenant=acme,
        window_start=now,
        threshold=80,
        limit={"subject": "acme", "metric": "spend", "per": "month", "currency": "USD"},
        amount=100 * 10**9,
        used=81 * 10**9,
        held=0,
        created_at=now,
    )


def test_the_dashboard_says_when_counters_were_compared(browser: Client) -> None:
    assert b"have not been compared" in browser.get("/admin/").content
    drift.check()
    assert b"drift: 0, checked 0" in browser.get("/admin/").content


def test_the_dashboard_shows_what_differed(browser: Client, acme: Tenant) -> None:
    Counter.objects.create(scope="tenant", owner_id=acme.pk, currency="USD", requests=7)
    drift.check()
    page = browser.get("/admin/").content.decode()
    assert "drift: 1, checked" in page
    assert f"tenant {acme.pk} (USD): requests was 7, right is 0, repaired" in page
    assert browser.get("/admin/ledger/driftfinding/").status_code == 200


def test_a_warning_says_who_was_told(browser: Client, warning: LimitWarning) -> None:
    Delivery.objects.create(warning=warning, channel="email", address="billing@acme.example", status="sent")
    page = browser.get("/admin/limits/limitwarning/").content.decode()
    assert "acme: spend per month" in page and "81" in page and "email sent" in page


def test_a_delivery_that_failed_is_sent_again_by_hand(browser: Client, warning: LimitWarning) -> None:
    failed = Delivery.objects.create(
        warning=warning, channel="webhook", address="https://acme.example/", status="failed", attempts=10
    )
    assert "https://acme.example/" in browser.get("/admin/limits/delivery/").content.decode()
    browser.post("/admin/limits/delivery/", {"action": "send_again", "_selected_action": [failed.pk]})
    failed.refresh_from_db()
    assert (failed.status, failed.attempts) == ("pending", 0)
    assert failed.next_at is not None and failed.next_at <= timezone.now() + timedelta(seconds=1)


def test_a_webhooks_secret_is_shown_once_and_can_be_renewed(browser: Client, acme: Tenant) -> None:
    answer = browser.post(
        "/admin/limits/webhookendpoint/add/",
        {"tenant": acme.pk, "url": "https://hooks.acme.example/limits", "enabled": "on"},
        follow=True,
    )
    endpoint = WebhookEndpoint.objects.get()
    assert endpoint.secret.startswith("whsec_")
    assert endpoint.secret in answer.content.decode()
    assert endpoint.secret not in browser.get(f"/admin/limits/webhookendpoint/{endpoint.pk}/change/").content.decode()
    chosen = {"action": "renew_secret", "_selected_action": [endpoint.pk]}
    answer = browser.post("/admin/limits/webhookendpoint/", chosen, follow=True)
    former, endpoint = endpoint.secret, WebhookEndpoint.objects.get()
    assert endpoint.secret != former
    assert endpoint.secret in answer.content.decode()


def test_a_webhook_to_where_none_may_go_is_refused(browser: Client) -> None:
    answer = browser.post(
        "/admin/limits/webhookendpoint/add/", {"url": "http://169.254.169.254/latest", "enabled": "on"}
    )
    assert "never called" in answer.content.decode()
    assert not WebhookEndpoint.objects.exists()
