"""The books: processes and their holds, usage records, adjustments, counters, the work queue.

The desk's SQL (`sql/desk.sql`) is the one writer of holds, records and counters. None of them has a foreign
key at database level: those cost 70 % more PostgreSQL CPU, and parents are never deleted anyway (PROTECT).
`UsageRecord` is partitioned by month on its UUIDv7 and append-only: triggers refuse UPDATE, DELETE and
TRUNCATE, and the application's role has INSERT and SELECT alone.
Amounts are nano-units (10^-9) of the currency beside them.
"""

from __future__ import annotations

from typing import Self

from django.conf import settings
from django.db import models

from gateway.ledger.findings import DriftCheck, DriftFinding
from gateway.ledger.gates import Gate
from tenants.models import APIKey, Tenant

__all__ = [
    "Adjustment",
    "Attempt",
    "Counter",
    "DeadLetter",
    "DriftCheck",
    "DriftFinding",
    "Fact",
    "Gate",
    "Hold",
    "OwnedQuerySet",
    "Process",
    "UsageRecord",
    "WorkItem",
]


class Process(models.Model):
    """A process's lease. It beats every 5 s; the sweeper takes the holds of those seen dead twice."""

    id = models.UUIDField(primary_key=True)
    kind = models.CharField(max_length=10, default="server")  # server | worker
    host = models.CharField(max_length=255)
    pid = models.IntegerField()
    started_at = models.DateTimeField()
    heartbeat_at = models.DateTimeField()
    suspected_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.kind} {self.pid} on {self.host}"


class OwnedQuerySet(models.QuerySet[models.Model]):
    """For every model here that has a tenant."""

    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)


class Fact(models.Model):
    """What a hold, a record and an adjustment all say of the request: whose, which model, from when."""

    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+", db_constraint=False, db_index=False)
    key = models.ForeignKey(APIKey, models.PROTECT, related_name="+", db_constraint=False, db_index=False)
    model = models.CharField(max_length=200)  # public id
    started_at = models.DateTimeField()  # the database's clock at admission
    local_date = models.DateField()  # started_at in the tenant's zone at admission
    charge_currency = models.CharField(max_length=3)
    cost_currency = models.CharField(max_length=3, blank=True)

    class Meta:
        abstract = True


class Hold(Fact):
    """An admitted request that is not yet settled, with the decision that settlement must use."""

    request_id = models.UUIDField(primary_key=True)
    process_id = models.UUIDField()
    catalogue_model_id = models.BigIntegerField()
    deployment_id = models.BigIntegerField(null=True)
    provider_id = models.BigIntegerField(null=True)
    endpoint = models.CharField(max_length=40)
    stream = models.BooleanField()
    input_tokens = models.BigIntegerField()  # estimates
    output_tokens = models.BigIntegerField()
    amount = models.BigIntegerField()  # held of the tenant's currency
    charge_price_id = models.BigIntegerField(null=True)
    cost_price_id = models.BigIntegerField(null=True)
    client_request_id = models.CharField(max_length=512, blank=True)
    end_user = models.CharField(max_length=256, blank=True)
    served_model = models.CharField(max_length=200, blank=True, default="", db_default="")

    objects = OwnedQuerySet.as_manager()

    class Meta:
        indexes = [models.Index(fields=["process_id"], name="hold_process")]

    def __str__(self) -> str:
        return str(self.request_id)


class UsageRecord(Fact):
    """The counterfoil of one request. Written once, before the client sees the end of its answer."""

    class Status(models.TextChoices):
        COMPLETED = "completed"
        FAILED = "failed"
        INTERRUPTED = "interrupted"
        UNKNOWN = "unknown"

    request_id = models.UUIDField(primary_key=True)
    process_id = models.UUIDField()
    catalogue_model_id = models.BigIntegerField()
    deployment_id = models.BigIntegerField(null=True)
    provider_id = models.BigIntegerField(null=True)
    endpoint = models.CharField(max_length=40)
    stream = models.BooleanField()
    status = models.CharField(max_length=12, choices=Status.choices)
    estimated = models.BooleanField()  # the token counts are ours, not the upstream's
    http_status = models.SmallIntegerField()
    error_code = models.CharField(max_length=64, blank=True)
    ended_at = models.DateTimeField()
    first_byte_ms = models.IntegerField(null=True)
    # Classes do not overlap (accounting.md 4): input is the uncached part, output is without reasoning.
    input_tokens = models.BigIntegerField()
    cached_input_tokens = models.BigIntegerField()
    cache_write_tokens = models.BigIntegerField()
    output_tokens = models.BigIntegerField()
    reasoning_tokens = models.BigIntegerField()
    charge = models.BigIntegerField(null=True)  # null: unpriced
    cost = models.BigIntegerField(null=True)
    charge_price_id = models.BigIntegerField(null=True)
    cost_price_id = models.BigIntegerField(null=True)
    lines = models.JSONField()  # [[side, class, units, price, amount], …]; amounts as decimal strings
    client_request_id = models.CharField(max_length=512, blank=True)
    end_user = models.CharField(max_length=256, blank=True)
    served_model = models.CharField(max_length=200, blank=True, default="", db_default="")  # blank: `model` itself
    # recorded_xid xid8 DEFAULT pg_current_xact_id(): only in SQL; incremental readers stop at pg_snapshot_xmin

    objects = OwnedQuerySet.as_manager()

    class Meta:
        ordering = ["-request_id"]

    def __str__(self) -> str:
        return str(self.request_id)


class Attempt(models.Model):
    """A call of a provider, where a request made several or its only one failed. Partitioned and append-only, too."""

    id = models.BigAutoField(primary_key=True)  # for the admin; what is unique is (request_id, number)
    request_id = models.UUIDField()
    number = models.SmallIntegerField()  # from 1
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+", db_constraint=False, db_index=False)
    model = models.CharField(max_length=200)  # public id of the model that was called
    deployment_id = models.BigIntegerField()
    provider_id = models.BigIntegerField()
    started_at = models.DateTimeField()
    first_byte_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField()
    outcome = models.CharField(max_length=32)
    http_status = models.SmallIntegerField()  # 0: no answer
    served = models.BooleanField()  # its answer is what the client got: tokens and cost are the record's
    input_tokens = models.BigIntegerField()
    cached_input_tokens = models.BigIntegerField()
    cache_write_tokens = models.BigIntegerField()
    output_tokens = models.BigIntegerField()
    reasoning_tokens = models.BigIntegerField()
    estimated = models.BooleanField()
    cost = models.BigIntegerField(null=True)  # null: tokens, but no cost price
    cost_currency = models.CharField(max_length=3, blank=True)
    cost_price_id = models.BigIntegerField(null=True)

    objects = OwnedQuerySet.as_manager()

    class Meta:
        ordering = ["-request_id", "number"]

    def __str__(self) -> str:
        return f"attempt {self.number} of {self.request_id}"


class Adjustment(Fact):
    """A correction: deltas that point at what they correct, with a reason and a person (or none: automatic)."""

    class Kind(models.TextChoices):
        LATE_SETTLEMENT = "late_settlement", "settled after the sweep"
        RATING = "rating", "priced later"
        RESOLUTION = "resolution", "unknown record resolved"
        CORRECTION = "correction"

    id = models.UUIDField(primary_key=True)
    request_id = models.UUIDField(db_index=True)
    kind = models.CharField(max_length=16, choices=Kind.choices)
    input_tokens = models.BigIntegerField(default=0)
    cached_input_tokens = models.BigIntegerField(default=0)
    cache_write_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    reasoning_tokens = models.BigIntegerField(default=0)
    charge = models.BigIntegerField(default=0)
    cost = models.BigIntegerField(default=0)
    lines = models.JSONField(default=list)
    reason = models.TextField()
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+", db_constraint=False
    )
    created_at = models.DateTimeField()
    # recorded_xid as on UsageRecord

    objects = OwnedQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["request_id", "kind"],
                condition=~models.Q(kind="correction"),
                name="adjustment_once",
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.request_id}"


class Counter(models.Model):
    """Lifetime totals of a tenant or key in one currency: a cache of the ledger (verify_ledger compares)."""

    class Scope(models.TextChoices):
        TENANT = "tenant"
        KEY = "key"

    scope = models.CharField(max_length=6, choices=Scope.choices)
    owner_id = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    # Of a busy owner each process has a row; their sum counts.
    shard = models.SmallIntegerField(default=0, db_default=0)
    requests = models.BigIntegerField(default=0)
    tokens = models.BigIntegerField(default=0)
    charge = models.DecimalField(max_digits=38, decimal_places=0, default=0)
    held_requests = models.BigIntegerField(default=0)
    held = models.DecimalField(max_digits=38, decimal_places=0, default=0)
    last_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["scope", "owner_id", "currency", "shard"], name="counter_unique")
        ]

    def __str__(self) -> str:
        return f"{self.scope} {self.owner_id} {self.currency}"


class WorkItem(models.Model):
    """A record that a person has to look at: `unpriced` (no price yet) or `unknown` (its process died)."""

    class Kind(models.TextChoices):
        UNPRICED = "unpriced"
        UNKNOWN = "unknown"

    request_id = models.UUIDField()
    kind = models.CharField(max_length=8, choices=Kind.choices)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+", db_constraint=False)
    created_at = models.DateTimeField()
    resolved_at = models.DateTimeField(null=True, blank=True)
    resolved_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    objects = OwnedQuerySet.as_manager()

    class Meta:
        ordering = ["created_at", "id"]
        constraints = [models.UniqueConstraint(fields=["request_id", "kind"], name="workitem_unique")]
        indexes = [
            models.Index(fields=["created_at"], name="workitem_open", condition=models.Q(resolved_at=None)),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.request_id}"


class DeadLetter(models.Model):
    """A settlement that the database refused for good. It pages; `payload` has all that is needed to book it."""

    request_id = models.UUIDField(unique=True)
    payload = models.JSONField()
    error = models.TextField()
    created_at = models.DateTimeField(auto_now_add=True)
    resolved_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return str(self.request_id)
