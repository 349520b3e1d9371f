"""Thresholds are warned of once per window, by e-mail and by signed webhook, however often the worker looks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from django.core import mail
from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.utils import timezone
from openai import InvalidWebhookSignatureError, OpenAI

from gateway.identifiers import uuid7
from gateway.limits import delivery, housekeeping, warnings, webhooks
from gateway.limits.models import (
    Delivery,
    LimitCounter,
    LimitRule,
    LimitWarning,
    Plan,
    PlanMembership,
    WebhookEndpoint,
)
from gateway.limits.refusals_log import Refusal
from gateway.limits.windows import EVER
from tenants.models import APIKey, Tenant


@pytest.fixture
def acme(db: None) -> Tenant:
    return Tenant.objects.create(
        slug="acme", name="Acme", timezone="Asia/Tokyo", billing_contact="billing@acme.example"
    )


@pytest.fixture
def post(settings: Any) -> None:
    settings.EMAIL_HOST, settings.WARNING_EMAILS = "mail.example", ["ops@counterfoil.example"]


@pytest.fixture
def budget(acme: Tenant) -> LimitRule:
    return LimitRule.objects.create(tenant=acme, metric="spend", per="month", currency="USD", amount=100 * 10**9)


def used(rule: LimitRule, amount: int, *, held: int = 0, owner: int = 0, **window: Any) -> LimitCounter:
    now = timezone.now().replace(minute=0, second=0, microsecond=0)
    window = {"window_start": now - timedelta(days=1), "window_end": now + timedelta(days=1)} | window
    counter, _ = LimitCounter.objects.update_or_create(
        rule_id=rule.pk, owner_id=owner, defaults={"used": amount, "held": held, **window}
    )
    return counter


def thresholds() -> list[int]:
    return sorted(LimitWarning.objects.values_list("threshold", flat=True))


class Receiver(HTTPServer):
    """Answers with `statuses` one after the other, then 204."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hooks?of=acme"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
        self.send_header("location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


# ---- when ----


def test_each_threshold_is_warned_of_once_a_window(budget: LimitRule) -> None:
    used(budget, 49 * 10**9)
    assert (warnings.look(), thresholds()) == (0, [])
    used(budget, 50 * 10**9)
    assert (warnings.look(), thresholds()) == (1, [50])
    assert warnings.look() == 0
    used(budget, 99 * 10**9)
    assert (warnings.look(), thresholds()) == (1, [50, 80])
    used(budget, 20 * 10**9)  # a correction
    used(budget, 60 * 10**9)
    assert warnings.look() == 0
    used(budget, 60 * 10**9, window_start=timezone.now() - timedelta(hours=1))  # the next window
    assert (warnings.look(), thresholds()) == (1, [50, 50, 80])


def test_nothing_left_is_a_hundred_per_cent(budget: LimitRule) -> None:
    used(budget, 90 * 10**9, held=10 * 10**9)
    warnings.look()
    assert thresholds() == [50, 80, 100]


def refused(rule: LimitRule, tenant: Tenant, ask: int, *, at: datetime | None = None, **more: Any) -> Refusal:
    key, _ = APIKey.objects.get_or_create(public_id=f"{tenant.slug}laptop"[:12], tenant=tenant, name="laptop")
    owner = tenant.pk if rule.plan_id else 0
    others, mine = [rule.pk + 1000, *[9] * 10], [rule.pk, owner, ord("c"), ord("s"), 1, 0, -1, rule.amount, ask, 0, 0]
    fields = {"rule_id": rule.pk, "decided": [others, mine], "input_tokens": 1, "output_tokens": 1} | more
    return Refusal.objects.create(
        request_id=uuid7(), tenant=tenant, key=key, model="acme-chat", at=at or timezone.now(), **fields
    )


def test_a_remainder_that_no_request_fits_into_is_a_hundred_per_cent(
    budget: LimitRule, acme: Tenant, post: None
) -> None:
    used(budget, 70 * 10**9, held=10**9)
    warnings.look()
    refused(budget, acme, 29 * 10**9)  # it would fit by now
    refused(budget, acme, 101 * 10**9)  # it can never fit
    refused(budget, acme, 40 * 10**9, at=timezone.now() - timedelta(days=2))  # in the window before
    refused(budget, acme, 40 * 10**9, lowered_to=5)  # admitted after all
    refused(budget, acme, 40 * 10**9, reason="no_price")
    assert (warnings.look(), thresholds()) == (0, [50])
    refused(budget, acme, 30 * 10**9)
    assert [warnings.look(), warnings.look()] == [1, 0]
    warning = LimitWarning.objects.get(threshold=100)
    assert warning.refusing and (warning.used, warning.held) == (70 * 10**9, 10**9)
    delivery.send_due()
    letter = next(m for m in mail.outbox if m.to == ["ops@counterfoil.example"] and "refuses" in m.subject)
    assert letter.subject == "Spend per month refuses requests: acme"
    assert "what is left is too little for them: spend per month of acme." in letter.body
    assert "Used: 70 USD" in letter.body


def test_one_large_request_does_not_use_the_warning_up(budget: LimitRule, acme: Tenant) -> None:
    used(budget, 40 * 10**9)
    refused(budget, acme, 70 * 10**9)
    assert warnings.look() == 0
    LimitRule.objects.update(mode="observe")
    used(budget, 49 * 10**9, held=10**9)
    assert warnings.look() == 0


def test_a_plans_refusal_warns_the_tenant_that_was_refused(acme: Tenant) -> None:
    globex = Tenant.objects.create(slug="globex", name="Globex")
    plan = Plan.objects.create(slug="basic", name="Basic")
    for tenant in (acme, globex):
        PlanMembership.objects.create(plan=plan, tenant=tenant)
    rule = LimitRule.objects.create(
        plan=plan, metric="spend", per="day", currency="USD", amount=100, thresholds=[100]
    )
    for tenant in (acme, globex):
        used(rule, 60, owner=tenant.pk)
    refused(rule, acme, 50)
    assert warnings.look() == 1
    assert LimitWarning.objects.get().tenant == acme


def test_credit_and_a_raise_count_as_the_desk_counts_them(budget: LimitRule, acme: Tenant) -> None:
    LimitRule.objects.filter(pk=budget.pk).update(
        raised_amount=1000 * 10**9, raised_until=timezone.now() + timedelta(hours=1)
    )
    used(budget, 100 * 10**9)
    assert warnings.look() == 0
    prepaid = LimitRule.objects.create(tenant=acme, metric="spend", per="total", currency="USD", amount=0)
    prepaid.credits.create(amount=10, expires_at=timezone.now() + timedelta(days=1))
    prepaid.credits.create(amount=1000, expires_at=timezone.now() - timedelta(days=1))
    used(prepaid, 9, window_start=EVER, window_end=None)
    warnings.look()
    assert thresholds() == [50, 80]


def test_observe_warns_and_switched_off_does_not(budget: LimitRule) -> None:
    used(budget, 100 * 10**9)
    LimitRule.objects.filter(pk=budget.pk).update(mode="observe")
    used(budget, 100 * 10**9)
    assert warnings.look() == 3
    assert LimitWarning.objects.first().limit["mode"] == "observe"  # type: ignore[union-attr]


def test_a_rate_is_warned_of_once_a_day(acme: Tenant) -> None:
    rule = LimitRule.objects.create(tenant=acme, metric="requests", per="minute", amount=10, thresholds=[80])
    at = int(timezone.now().timestamp())
    used(rule, 0, window_start=EVER, window_end=None, slot_at=at, slots=[9 if i == at % 61 else 0 for i in range(61)])
    assert [warnings.look(), warnings.look()] == [1, 0]
    warning = LimitWarning.objects.get()
    assert (warning.used, warning.window_end) == (9, warning.window_start + timedelta(days=1))


def test_a_plan_warns_each_of_its_tenants(acme: Tenant, post: None) -> None:
    globex = Tenant.objects.create(slug="globex", name="Globex", billing_contact="b@globex.example")
    plan = Plan.objects.create(slug="basic", name="Basic")
    for tenant in (acme, globex):
        PlanMembership.objects.create(plan=plan, tenant=tenant)
    rule = LimitRule.objects.create(plan=plan, metric="tokens", per="day", amount=100, thresholds=[80])
    used(rule, 85, owner=acme.pk)
    used(rule, 70, owner=globex.pk)
    warnings.look()
    assert [warning.tenant for warning in LimitWarning.objects.all()] == [acme]
    assert set(Delivery.objects.values_list("address", flat=True)) == {
        "billing@acme.example",
        "ops@counterfoil.example",
    }
    assert not LimitWarning.objects.all().for_tenant(globex).exists()


# ---- by e-mail ----


def test_the_highest_threshold_that_was_reached_is_written_to_both(budget: LimitRule, post: None) -> None:
    used(budget, 85 * 10**9)
    warnings.look()
    assert [delivery.send_due(), delivery.send_due()] == [2, 0]
    assert sorted(letter.to[0] for letter in mail.outbox) == ["billing@acme.example", "ops@counterfoil.example"]
    assert mail.outbox[0].subject == "80 % of spend per month used: acme"
    assert "Limit: 100 USD\nUsed: 85 USD" in mail.outbox[0].body


def test_a_mail_server_that_is_away_is_tried_again(budget: LimitRule, post: None, monkeypatch: Any) -> None:
    used(budget, 50 * 10**9)
    warnings.look()

    def refuse(self: EmailMessage) -> None:
        raise ConnectionRefusedError("no mail today")

    with monkeypatch.context() as patch:
        patch.setattr(EmailMessage, "send", refuse)
        assert delivery.send_due() == 0
    assert "no mail today" in Delivery.objects.all()[0].answer
    assert delivery.send_due() == 0  # not yet
    assert delivery.send_due(now=timezone.now() + timedelta(minutes=1)) == 2


def test_without_a_mail_server_none_is_kept_for_later(budget: LimitRule) -> None:
    used(budget, 50 * 10**9)
    assert warnings.look() == 1
    assert not Delivery.objects.exists()


# ---- by webhook ----


def test_a_webhook_is_signed_so_that_openais_sdk_verifies_it(
    budget: LimitRule, acme: Tenant, receiver: Receiver
) -> None:
    endpoint = WebhookEndpoint.objects.create(tenant=acme, url=receiver.url)
    used(budget, 85 * 10**9, held=10**9)
    warnings.look()
    assert delivery.send_due() == 1
    ((headers, body),) = receiver.got
    client = OpenAI(api_key="sk-none", base_url="http://127.0.0.1:1")
    client.webhooks.verify_signature(body, headers, secret=endpoint.secret)
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.verify_signature(body + b" ", headers, secret=endpoint.secret)
    told = json.loads(body)
    assert (told["type"], told["id"]) == ("limit.threshold_reached", headers["webhook-id"])
    assert told["data"]["limit"] == {
        "id": budget.pk, "subject": "acme", "metric": "spend", "per": "month", "tokens": "both", "currency": "USD",
        "mode": "enforce",
    }  # fmt: skip
    figures = {name: told["data"][name] for name in ("tenant", "threshold", "amount", "used", "held")}
    assert figures == {"tenant": "acme", "threshold": 80, "amount": "100", "used": "85", "held": "1"}
    sent = Delivery.objects.get()
    assert (sent.status, sent.answer, sent.attempts) == ("sent", "204 No Content", 1)


def test_a_neighbours_webhook_hears_nothing_and_ours_all(budget: LimitRule, receiver: Receiver) -> None:
    globex = Tenant.objects.create(slug="globex", name="Globex")
    WebhookEndpoint.objects.create(tenant=globex, url=receiver.url + "&to=globex")
    WebhookEndpoint.objects.create(tenant=None, url=receiver.url + "&to=us")
    WebhookEndpoint.objects.create(tenant=None, url=receiver.url + "&to=nobody", enabled=False)
    used(budget, 50 * 10**9)
    warnings.look()
    assert [sent.address[-2:] for sent in Delivery.objects.all()] == ["us"]
    assert not WebhookEndpoint.objects.all().for_tenant(budget.tenant).exists()


def test_it_is_tried_again_ever_later_and_then_no_more(budget: LimitRule, acme: Tenant, receiver: Receiver) -> None:
    WebhookEndpoint.objects.create(tenant=acme, url=receiver.url)
    used(budget, 50 * 10**9)
    warnings.look()
    receiver.statuses = [500, 302, *[503] * 20]
    now, waits = timezone.now(), []
    while (sent := Delivery.objects.get()).status == "pending":
        assert sent.next_at is not None
        waits.append(sent.next_at - now)
        now = max(now, sent.next_at)
        assert delivery.send_due(now=now) == 0
    assert (sent.status, sent.attempts, sent.answer[:3]) == ("failed", delivery.ATTEMPTS, "503")
    assert len(receiver.got) == delivery.ATTEMPTS  # a redirect was not followed
    assert waits[1:4] == [timedelta(seconds=s) for s in (30, 60, 120)]
    assert max(waits) <= delivery.LONGEST_WAIT
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1


def test_a_worker_that_died_over_a_delivery_leaves_it_due(
    budget: LimitRule, acme: Tenant, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    WebhookEndpoint.objects.create(tenant=acme, url=receiver.url)
    used(budget, 50 * 10**9)
    warnings.look()

    def die(*args: Any, **kwargs: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(webhooks, "post", die)
        with pytest.raises(KeyboardInterrupt):
            delivery.send_due()
    assert delivery.send_due() == 0
    assert delivery.send_due(now=timezone.now() + delivery.CLAIM) == 1


def test_addresses_that_may_not_be_called_are_refused_when_written_and_when_called(
    budget: LimitRule, acme: Tenant, receiver: Receiver, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway.upstreams import addresses

    endpoint = WebhookEndpoint(tenant=acme, url="http://169.254.169.254/latest")
    with pytest.raises(ValidationError, match="never called"):
        endpoint.full_clean()
    monkeypatch.setattr(addresses, "_rules", addresses.Rules())
    WebhookEndpoint.objects.create(tenant=acme, url=receiver.url.replace("127.0.0.1", "localhost"))
    used(budget, 50 * 10**9)
    warnings.look()
    assert delivery.send_due() == 0
    assert "AddressRefused" in Delivery.objects.get().answer
    assert receiver.got == []


# ---- housekeeping ----


def test_old_windows_warnings_and_deliveries_are_tidied(budget: LimitRule, post: None) -> None:
    now = timezone.now()
    used(budget, 85 * 10**9)
    warnings.look()
    assert housekeeping.tidy(now=now + timedelta(days=399)) == 0
    assert housekeeping.tidy(now=now + timedelta(days=402)) > 0
    assert not (LimitCounter.objects.exists() or LimitWarning.objects.exists() or Delivery.objects.exists())


def test_the_next_windows_are_opened_ahead_in_the_tenants_zone(budget: LimitRule, acme: Tenant) -> None:
    key = APIKey.objects.create(public_id="acmeacmeacme", tenant=acme, name="laptop")
    daily = LimitRule.objects.create(key=key, metric="requests", per="day", amount=5)
    now = timezone.now().replace(hour=14, minute=55)  # 23:55 in Tokyo
    end = now.replace(hour=15, minute=0, second=0, microsecond=0)
    used(daily, 3, window_start=end - timedelta(days=1), window_end=end)
    assert [housekeeping.open_windows(now=now), housekeeping.open_windows(now=now)] == [1, 1]
    ahead = LimitCounter.objects.get(rule_id=daily.pk, window_start=end)
    assert (ahead.used, ahead.window_end) == (0, end + timedelta(days=1))
