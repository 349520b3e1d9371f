"""Who is calling: a tenant, its API keys, and the secrets of each key."""

from __future__ import annotations

import zoneinfo
from collections.abc import Callable
from datetime import datetime
from typing import Self

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db import models
from django.utils import timezone
from simple_history.models import HistoricalRecords

# PostgreSQL takes these for abbreviations with one offset all year, Python for zones with summer time: the books
# would disagree on which day it is. The machine's own zone means nothing to the database.
AMBIGUOUS_ZONES = frozenset({"CET", "EET", "MET", "WET", "localtime"})


def validate_timezone(name: str) -> None:
    if name not in zoneinfo.available_timezones() - AMBIGUOUS_ZONES:
        raise ValidationError(f"{name!r} is not an IANA time zone, such as Europe/Berlin or UTC.")


def validate_patterns(patterns: object) -> None:
    """A list of model ids; `*` in one stands for any run of characters."""
    if not isinstance(patterns, list) or not all(isinstance(p, str) and p.strip() for p in patterns):
        raise ValidationError('Give a list of model ids or patterns, such as ["acme-*"] or ["*"].')


def every_model() -> list[str]:
    return ["*"]


# Layers above may refuse that a tenant's time zone or currency changes: called with the stored and the new tenant,
# they raise ValidationError (limits.tenancy).
move_checks: list[Callable[[Tenant, Tenant], None]] = []


class Tenant(models.Model):
    """A customer. Amounts are in its currency; days and months are those of its time zone."""

    class Status(models.TextChoices):
        ACTIVE = "active"
        SUSPENDED = "suspended"
        CLOSED = "closed"

    slug = models.SlugField(max_length=63, unique=True)
    name = models.CharField(max_length=200)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.ACTIVE)
    timezone = models.CharField("time zone", max_length=64, default="UTC", validators=[validate_timezone])
    currency = models.CharField(
        max_length=3,
        default="USD",
        validators=[RegexValidator(r"^[A-Z]{3}$", "ISO 4217, such as USD or EUR.")],
    )
    billing_contact = models.EmailField(blank=True)
    allowed_models = models.JSONField(
        default=list,
        blank=True,
        validators=[validate_patterns],
        help_text='Models that this tenant may call, such as ["acme-*"]. ["*"] is all; an empty list is none.',
    )
    version = models.BigIntegerField(default=1, editable=False)  # bumped by a trigger: see migration 0002
    created_at = models.DateTimeField(auto_now_add=True)
    history = HistoricalRecords(excluded_fields=["version"])

    class Meta:
        ordering = ["slug"]
        constraints = [
            models.CheckConstraint(
                name="tenant_status", condition=models.Q(status__in=["active", "suspended", "closed"])
            )
        ]

    def __str__(self) -> str:
        return self.slug

    def clean(self) -> None:
        stored = Tenant.objects.filter(pk=self.pk).first() if self.pk else None
        if stored is not None and (stored.timezone, stored.currency) != (self.timezone, self.currency):
            for check in move_checks:
                check(stored, self)

    @property
    def zone(self) -> zoneinfo.ZoneInfo:
        return zoneinfo.ZoneInfo(self.timezone)


class APIKeyQuerySet(models.QuerySet["APIKey"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)


class APIKey(models.Model):
    """A stable identity that usage is booked on. What proves it are its secrets, which rotate."""

    class Status(models.TextChoices):
        ACTIVE = "active"
        REVOKED = "revoked"

    public_id = models.CharField(max_length=12, unique=True, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="keys")
    name = models.CharField(max_length=200)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.ACTIVE)
    expires_at = models.DateTimeField(null=True, blank=True)
    allowed_models = models.JSONField(
        default=every_model,
        blank=True,
        validators=[validate_patterns],
        help_text='Narrows what the tenant may call. ["*"] is all of that; an empty list is none.',
    )
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    version = models.BigIntegerField(default=1, editable=False)  # bumped by a trigger: see migration 0002
    history = HistoricalRecords(excluded_fields=["version", "last_used_at"])

    objects = APIKeyQuerySet.as_manager()

    class Meta:
        verbose_name = "API key"
        ordering = ["-created_at", "-id"]
        constraints = [
            models.CheckConstraint(name="apikey_status", condition=models.Q(status__in=["active", "revoked"]))
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.public_id})"

    def is_live(self, now: datetime | None = None) -> bool:
        now = now or timezone.now()
        return self.status == self.Status.ACTIVE and (self.expires_at is None or self.expires_at > now)


class KeySecretQuerySet(models.QuerySet["KeySecret"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(key__tenant=tenant)


class KeySecret(models.Model):
    """One secret of a key: only its HMAC-SHA256 under the server's pepper, and its last four characters.

    A rotation adds a secret and gives the old ones an end, so that both work for a while.
    `imported` marks those of API_KEYS, which have any shape; their digests are in every process's memory.
    """

    key = models.ForeignKey(APIKey, models.CASCADE, related_name="secrets")
    digest = models.BinaryField(max_length=32, unique=True, editable=False)
    last4 = models.CharField(max_length=4, editable=False)
    imported = models.BooleanField(default=False, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)

    objects = KeySecretQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]

    def __str__(self) -> str:
        return f"…{self.last4}"
