"""What is kept of warnings: that a threshold was reached (once per window), and how each notice of it fared."""

from __future__ import annotations

import base64
import secrets
from typing import Any, Self

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models
from simple_history.models import HistoricalRecords

from gateway.catalogue.fields import EncryptedTextField
from gateway.catalogue.pricing import format_amount
from gateway.upstreams.addresses import AddressRefused, check_base_url
from tenants.models import Tenant


def new_secret() -> str:
    """As Standard Webhooks writes them: OpenAI's SDKs and others can verify with it."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


class WebhookEndpointQuerySet(models.QuerySet["WebhookEndpoint"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)


class LimitWarningQuerySet(models.QuerySet["LimitWarning"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)


class WebhookEndpoint(models.Model):
    """Where warnings are posted: a tenant's own, or everybody's (no tenant)."""

    tenant = models.ForeignKey(
        Tenant,
        models.CASCADE,
        null=True,
        blank=True,
        related_name="+",
        help_text="Empty: the warnings of all tenants.",
    )
    url = models.CharField("URL", max_length=500)
    secret = EncryptedTextField(blank=True, default=new_secret, editable=False)
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)
    history = HistoricalRecords(excluded_fields=["secret"])

    objects = WebhookEndpointQuerySet.as_manager()

    class Meta:
        ordering = ["tenant", "url"]
        constraints = [models.UniqueConstraint(fields=["tenant", "url"], name="webhook_unique", nulls_distinct=False)]

    def __str__(self) -> str:
        return self.url

    def clean(self) -> None:
        """The address that it leads to is judged again at each delivery."""
        try:
            check_base_url(
                self.url,
                allow_private=settings.UPSTREAM_ALLOW_PRIVATE,
                allow_loopback=settings.UPSTREAM_ALLOW_LOOPBACK,
            )
        except AddressRefused as exc:
            raise ValidationError({"url": str(exc)}) from exc


class LimitWarning(models.Model):
    """So much of a limit was used in a window. Rates and requests in flight are warned of once a UTC day."""

    rule_id = models.BigIntegerField()
    owner_id = models.BigIntegerField(default=0)  # the tenant, for a plan's rule; else 0
    tenant = models.ForeignKey(Tenant, models.CASCADE, null=True, related_name="+", db_constraint=False)
    window_start = models.DateTimeField()
    window_end = models.DateTimeField(null=True)
    threshold = models.PositiveSmallIntegerField()  # per cent
    limit = models.JSONField(default=dict)  # the rule as it was: subject, metric, per, tokens, currency, mode
    amount = models.DecimalField(max_digits=38, decimal_places=0)
    used = models.DecimalField(max_digits=38, decimal_places=0)
    held = models.DecimalField(max_digits=38, decimal_places=0)
    created_at = models.DateTimeField()

    objects = LimitWarningQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["rule_id", "owner_id", "window_start", "threshold"], name="limitwarning_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.threshold} % of {self.limit.get('subject', '')} {self.limit.get('metric', '')}"

    @property
    def refusing(self) -> bool:
        """Something is left, and too little for what clients send: that counts as 100 per cent."""
        return self.threshold == 100 and self.used + self.held < self.amount


class Delivery(models.Model):
    """One notice of one warning to one address: tried until it is taken, at most `delivery.ATTEMPTS` times."""

    class Channel(models.TextChoices):
        EMAIL = "email"
        WEBHOOK = "webhook"

    class Status(models.TextChoices):
        PENDING = "pending"
        SENT = "sent"
        FAILED = "failed"

    warning = models.ForeignKey(LimitWarning, models.CASCADE, related_name="deliveries")
    channel = models.CharField(max_length=7, choices=Channel.choices)
    address = models.CharField(max_length=500)
    endpoint = models.ForeignKey(WebhookEndpoint, models.SET_NULL, null=True, related_name="+")
    status = models.CharField(max_length=7, choices=Status.choices, default=Status.PENDING)
    attempts = models.PositiveSmallIntegerField(default=0)
    next_at = models.DateTimeField(null=True)
    answer = models.CharField(max_length=300, blank=True)  # the last one: a status, or what went wrong
    created_at = models.DateTimeField(auto_now_add=True)
    sent_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-created_at", "-id"]
        verbose_name_plural = "deliveries"
        constraints = [
            models.UniqueConstraint(fields=["warning", "channel", "address"], name="delivery_once"),
        ]
        indexes = [
            models.Index(fields=["next_at"], name="delivery_due", condition=models.Q(status="pending")),
        ]

    def __str__(self) -> str:
        return f"{self.channel} to {self.address}"


def event(warning: LimitWarning) -> dict[str, Any]:
    """What a webhook carries (docs/limits.md). Money is decimal strings of the currency, the rest are counts."""
    return {
        "id": f"limit_warning_{warning.pk}",
        "object": "event",
        "type": "limit.threshold_reached",
        "created_at": int(warning.created_at.timestamp()),
        "data": {
            "tenant": warning.tenant.slug if warning.tenant is not None else None,
            "limit": {"id": warning.rule_id, **warning.limit},
            "threshold": warning.threshold,
            "refusing": warning.refusing,
            "amount": shown(warning, warning.amount),
            "used": shown(warning, warning.used),
            "held": shown(warning, warning.held),
            "window": {
                "start": warning.window_start.isoformat(),
                "end": warning.window_end.isoformat() if warning.window_end is not None else None,
            },
        },
    }


def shown(warning: LimitWarning, value: Any) -> int | str:
    return format_amount(int(value)) if warning.limit.get("metric") == "spend" else int(value)
