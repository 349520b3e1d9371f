"""Hourly sums of the ledger, for whoever must not read a ledger of any length: dashboards, day sums.

A cache: all of it follows from the ledger (`gateway.billing.rollups`).
"""

from __future__ import annotations

from typing import Self

from django.db import models

from tenants.models import APIKey, Tenant


class UsageHourQuerySet(models.QuerySet["UsageHour"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)


class UsageHour(models.Model):
    """What one key used of one model in one hour, in one pair of currencies.

    `hour` is UTC. `local_date` is the record's own (the tenant's local day in which the request started): in
    zones such as Asia/Kolkata one hour of UTC belongs to two days and so has two rows.
    `kind` is empty for usage; adjustments have rows of their own under their kind, in the hour and on the day
    of the request that they correct, with `requests` 0. The sum over all kinds is what the books say.
    Amounts are nano-units of the currency beside them.
    """

    hour = models.DateTimeField()
    local_date = models.DateField()
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+", db_constraint=False, db_index=False)
    key = models.ForeignKey(APIKey, models.PROTECT, related_name="+", db_constraint=False, db_index=False)
    model = models.CharField(max_length=200)  # public id
    kind = models.CharField(max_length=16, blank=True)
    charge_currency = models.CharField(max_length=3)
    cost_currency = models.CharField(max_length=3, blank=True)
    requests = models.BigIntegerField(default=0)
    errors = models.BigIntegerField(default=0)  # failed, interrupted or unknown
    unpriced = models.BigIntegerField(default=0)  # records without a charge; each rating adjustment takes one off
    adjustments = models.BigIntegerField(default=0)
    input_tokens = models.BigIntegerField(default=0)
    cached_input_tokens = models.BigIntegerField(default=0)
    cache_write_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    reasoning_tokens = models.BigIntegerField(default=0)
    charge = models.DecimalField(max_digits=38, decimal_places=0, default=0)
    cost = models.DecimalField(max_digits=38, decimal_places=0, default=0)

    objects = UsageHourQuerySet.as_manager()

    class Meta:
        constraints = [
            # Also the index for a tenant's or a key's days: both begin with what is asked for.
            models.UniqueConstraint(
                fields=[
                    "tenant", "local_date", "key", "model", "hour", "kind", "charge_currency", "cost_currency"
                ],
                name="usagehour_unique",
            )
        ]  # fmt: skip
        indexes = [
            models.Index(fields=["hour"], name="usagehour_hour"),
            models.Index(fields=["local_date", "tenant"], name="usagehour_day"),
            models.Index(fields=["key", "local_date"], name="usagehour_key"),
        ]

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H}h {self.model}"


class RollupState(models.Model):
    """How far a rollup has read: every row of the ledger with `recorded_xid < next_xid` is in the sums.

    Whoever holds this row's lock is the one that works; it moves in the same transaction as the sums, so that
    every ledger row is added exactly once whatever is killed when.
    """

    name = models.CharField(max_length=20, primary_key=True)
    next_xid = models.BigIntegerField(default=0)
    moved_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.name} up to {self.next_xid}"
