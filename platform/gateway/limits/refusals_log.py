"""Refusals that are kept, so that anybody can be told why: compact, a few a second per key, bounded.

The desk's SQL writes them in the batch that refuses (`ledger_keep_refusals`), and those that were refused before any
counter was looked at in the batch that confirms them (`ledger_keep_early_refusals`). What a flood repeats is counted
in `stands_for` of the next one that is kept.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Self

from django.contrib.postgres.fields import ArrayField
from django.db import connection, models

from tenants.models import APIKey, Tenant

PER_SECOND = 3  # refusals of one key, in one process
KEYS = 10_000  # in memory
KEPT_PER_KEY = 1_000
KEPT_DAYS = 30
TIDIED_AT_ONCE = 5_000  # rows in one transaction
NO_RULE = 0

# Why no counter was looked at. Of what a limit lacked to decide (`claims.Unbounded.lacks`):
LACKS = {"input": "unbounded_input", "output": "unbounded_output", "price": "no_price"}
# and of refusals beside limits, by the code of the answer:
BESIDE_LIMITS = {
    "model_not_found": "there is no such model, or the key may not call it",
    "model_not_priced": "the model had no price in the tenant's currency",
    "invalid_value": "it asked for more completion tokens than the model has",
    "unavailable": "the model had no deployment that could serve it",
}


class RefusalQuerySet(models.QuerySet["Refusal"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)


class Refusal(models.Model):
    """A request that was refused, with what it was decided on (`ledger.decisions` reads `decided`).

    With a `reason` no counter was looked at: `decided` names the limit that lacked something, if it was a limit.
    """

    request_id = models.UUIDField(primary_key=True)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+", db_constraint=False, db_index=False)
    key = models.ForeignKey(APIKey, models.PROTECT, related_name="+", db_constraint=False, db_index=False)
    model = models.CharField(max_length=200)  # public id
    rule_id = models.BigIntegerField()  # the limit that the client was told of; NO_RULE: none refused it
    reason = models.CharField(max_length=32, blank=True, default="", db_default="")
    at = models.DateTimeField()
    input_tokens = models.BigIntegerField()  # estimates
    output_tokens = models.BigIntegerField()
    decided = ArrayField(ArrayField(models.DecimalField(max_digits=38, decimal_places=0)))
    stands_for = models.IntegerField(default=1)  # itself, and refusals of the key before it that were not kept
    lowered_to = models.IntegerField(null=True)  # on_shortage: fit admitted it after all, with this cap

    objects = RefusalQuerySet.as_manager()

    class Meta:
        ordering = ["-request_id"]
        indexes = [
            models.Index(fields=["tenant", "request_id"], name="refusal_tenant"),
            models.Index(fields=["key", "request_id"], name="refusal_key"),
            models.Index(fields=["at"], name="refusal_at"),
            models.Index(fields=["rule_id", "tenant", "at"], name="refusal_rule"),  # limits.warnings
        ]

    def __str__(self) -> str:
        return str(self.request_id)


class Sampler:
    """Which refusals of a process are kept: at most PER_SECOND of one key. Bounded; the rest is only counted."""

    def __init__(self) -> None:
        self._keys: OrderedDict[int, list[int]] = OrderedDict()  # key: [second, kept in it, not kept since]

    def weight(self, key_id: int, now: float | None = None) -> int | None:
        """How many refusals a request of this key stands for if it is refused; None: that need not be kept.

        What was not kept goes with one request alone; if that is not refused, `spare` takes it back.
        """
        state = self._keys.get(key_id)
        if state is None:
            return 1
        second = int(time.monotonic() if now is None else now)
        if state[0] == second and state[1] >= PER_SECOND:
            return None
        weight, state[2] = 1 + state[2], 0
        return weight

    def spare(self, key_id: int, weight: int | None) -> None:
        """A request with this weight was not refused after all."""
        if weight is not None and weight > 1:
            self._keys.setdefault(key_id, [0, 0, 0])[2] += weight - 1

    def refused(self, key_id: int, *, kept: bool, now: float | None = None) -> None:
        second = int(time.monotonic() if now is None else now)
        state = self._keys.setdefault(key_id, [second, 0, 0])
        self._keys.move_to_end(key_id)
        if state[0] != second:
            state[0], state[1] = second, 0
        if kept:
            state[1] += 1
        else:
            state[2] += 1
        if len(self._keys) > KEYS:
            self._keys.popitem(last=False)


def tidy(*, now: datetime, days: int = KEPT_DAYS, per_key: int = KEPT_PER_KEY) -> int:
    """Delete what is too old, and all but the newest of each key; returns how many. In short transactions."""
    old = "at < %s"
    beyond = (
        "request_id IN (SELECT request_id FROM (SELECT request_id, row_number() OVER"
        " (PARTITION BY key_id ORDER BY request_id DESC) AS n FROM limits_refusal) r WHERE n > %s)"
    )
    return _delete(old, now - timedelta(days=days)) + _delete(beyond, per_key)


def _delete(condition: str, value: datetime | int) -> int:
    total = 0
    with connection.cursor() as cursor:
        while True:
            cursor.execute(
                "DELETE FROM limits_refusal WHERE request_id IN"
                f" (SELECT request_id FROM limits_refusal WHERE {condition} LIMIT {TIDIED_AT_ONCE})",
                [value],
            )
            gone: int = cursor.rowcount
            total += gone
            if gone < TIDIED_AT_ONCE:
                return total
