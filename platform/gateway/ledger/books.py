"""Adjustments: the only way to change what the ledger says. Insert and counters in one transaction.

Counters are locked first, in id order, as the desk does (migrations/0006_desk.sql): lifetime counters, then those of
limits, in the windows in which the corrected request was admitted.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.db import connection, transaction
from django.utils import timezone

from gateway.ledger.models import Adjustment, UsageRecord, WorkItem


@dataclass(frozen=True, slots=True)
class Delta:
    """What an adjustment adds to a record, which may be negative. Amounts are nano-units."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    charge: int = 0
    cost: int = 0

    @property
    def tokens(self) -> int:
        return (
            self.input_tokens
            + self.cached_input_tokens
            + self.cache_write_tokens
            + self.output_tokens
            + self.reasoning_tokens
        )


def record_adjustment(
    *,
    record: UsageRecord,
    kind: str,
    delta: Delta,
    reason: str,
    by: AbstractBaseUser | None,
    lines: Sequence[Any] = (),
    cost_currency: str | None = None,
) -> Adjustment:
    """Book a correction of one record and move its counters.

    Raises IntegrityError if an adjustment of this kind exists (all but `correction` happen once a record).
    Resolves the work items that the kind answers.
    """
    with transaction.atomic():
        _move_counters(record, delta)
        adjustment = Adjustment.objects.create(
            id=uuid.uuid4(),
            request_id=record.request_id,
            kind=kind,
            tenant_id=record.tenant_id,
            key_id=record.key_id,
            model=record.model,
            started_at=record.started_at,
            local_date=record.local_date,
            charge_currency=record.charge_currency,
            cost_currency=record.cost_currency if cost_currency is None else cost_currency,
            input_tokens=delta.input_tokens,
            cached_input_tokens=delta.cached_input_tokens,
            cache_write_tokens=delta.cache_write_tokens,
            output_tokens=delta.output_tokens,
            reasoning_tokens=delta.reasoning_tokens,
            charge=delta.charge,
            cost=delta.cost,
            lines=list(lines),
            reason=reason,
            created_by_id=by.pk if by is not None else None,
            created_at=timezone.now(),
        )
        answered = {"rating": WorkItem.Kind.UNPRICED, "resolution": WorkItem.Kind.UNKNOWN}.get(kind)
        if answered is not None:
            WorkItem.objects.filter(request_id=record.request_id, kind=answered, resolved_at=None).update(
                resolved_at=timezone.now(), resolved_by=by
            )
    return adjustment


def _move_counters(record: UsageRecord, delta: Delta) -> None:
    owner: list[int | str] = [record.tenant_id, record.key_id, record.charge_currency]
    with connection.cursor() as cursor:
        cursor.execute("SELECT ledger_lock_owner(%s, %s, %s)", owner)
        cursor.execute("SELECT ledger_move_owner(%s, %s, %s, %s, %s)", [*owner, delta.tokens, delta.charge])
        cursor.execute(
            "SELECT ledger_adjust_limits(%s, %s, %s, %s, %s, %s, %s, %s)",
            [
                record.tenant_id,
                record.key_id,
                record.catalogue_model_id,
                record.charge_currency,
                record.started_at,
                delta.tokens - delta.output_tokens - delta.reasoning_tokens,
                delta.output_tokens + delta.reasoning_tokens,
                delta.charge,
            ],
        )
