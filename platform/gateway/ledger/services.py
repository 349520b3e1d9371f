"""What people do to the books: correct a record, rate one that had no price, resolve one whose process died.

Each is an adjustment (books.py), decided while the record's counters are locked, so that two people, or a
person and a late settlement, cannot both answer the same question. Raises ValidationError with texts for people.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from uuid import UUID

from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.db.models import Sum
from django.utils import timezone

from gateway.catalogue.models import Model, Price
from gateway.catalogue.pricing import format_amount, rate
from gateway.catalogue.snapshot import rates_of
from gateway.ledger.books import Delta, record_adjustment
from gateway.ledger.models import Adjustment, UsageRecord, WorkItem

TOKENS = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")


def adjust(*, record: UsageRecord, delta: Delta, reason: str, by: User) -> Adjustment:
    """Correct a record by what `delta` adds to it. No class and no amount may end up below zero."""
    reason = _reason(reason)
    if not any(asdict(delta).values()):
        raise ValidationError("This changes nothing: give at least one number.")
    with transaction.atomic():
        _lock(record)
        _nothing_pending(record, delta)
        for name, now in net(record).items():
            after = now + getattr(delta, name)
            if after < 0:
                money = name in ("charge", "cost")
                shown = format_amount(after) if money else str(after)
                raise ValidationError({name: f"With what is booked already this would be {shown}."})
        return record_adjustment(record=record, kind=Adjustment.Kind.CORRECTION, delta=delta, reason=reason, by=by)


def rate_unpriced(*, item: WorkItem, by: User) -> Adjustment:
    """Charge a record that had no price, at the price that was in force when it started."""
    record = _record(item)
    with transaction.atomic():
        _lock(record)
        _still_open(item, WorkItem.Kind.UNPRICED)
        charge = _price(record, Price.Side.CHARGE)
        if charge is None:
            raise ValidationError(
                f"{record.model} has no price in {record.charge_currency} that was in force at "
                f"{record.started_at:%Y-%m-%d %H:%M} UTC. Add one with an effective_from before that."
            )
        # A record of the sweeper's that was settled late has a cost of 0, priced or not.
        cost = _price(record, Price.Side.COST) if record.cost_price_id is None else None
        units = {name: value for name, value in net(record).items() if name in TOKENS}
        delta, lines = _rated(units, charge, cost)
        reason = f"rated at the price from {charge.effective_from:%Y-%m-%d %H:%M} UTC"
        return _book(record, Adjustment.Kind.RATING, delta, lines, reason, by, charge, cost)


def resolve_unknown(
    *,
    item: WorkItem,
    charged: bool,
    reason: str,
    by: User,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
) -> Adjustment:
    """Say what became of a request whose process died. The record has the hold's estimate and no charge.

    `charged` rates it at the prices that were fixed when it was admitted. Tokens that are given replace the
    estimate.
    """
    reason, record = _reason(reason), _record(item)
    with transaction.atomic():
        _lock(record)
        _still_open(item, WorkItem.Kind.UNKNOWN)
        now = net(record)
        wanted = {
            "input_tokens": now["input_tokens"] if input_tokens is None else input_tokens,
            "output_tokens": now["output_tokens"] if output_tokens is None else output_tokens,
        }
        if min(wanted.values()) < 0:
            raise ValidationError("Tokens cannot be negative.")
        changes = {name: value - now[name] for name, value in wanted.items()}
        charge = cost = None
        rated, lines = Delta(), list[Any]()
        if charged:
            charge, cost = _price(record, Price.Side.CHARGE), _price(record, Price.Side.COST)
            if charge is None:
                raise ValidationError(
                    f"{record.model} had no price in {record.charge_currency}: it cannot be charged."
                )
            rated, lines = _rated({**{name: now[name] for name in TOKENS}, **wanted}, charge, cost)
        delta = Delta(**changes, charge=rated.charge, cost=rated.cost)
        return _book(record, Adjustment.Kind.RESOLUTION, delta, lines, reason, by, charge, cost)


def find_record(request_id: UUID) -> UsageRecord | None:
    found: Any = UsageRecord.objects.select_related("tenant", "key").filter(request_id=request_id).first()
    return found  # type: ignore[no-any-return]


def adjustments_of(record: UsageRecord) -> list[Adjustment]:
    """Oldest first."""
    found: Any = Adjustment.objects.filter(request_id=record.request_id).order_by("created_at", "id")
    return list(found)


def net(record: UsageRecord) -> dict[str, int]:
    """Tokens and amounts of a record with all its adjustments; unpriced counts as 0."""
    names = (*TOKENS, "charge", "cost")
    sums = Adjustment.objects.filter(request_id=record.request_id).aggregate(**{name: Sum(name) for name in names})
    return {name: (getattr(record, name) or 0) + int(sums[name] or 0) for name in names}


def _book(
    record: UsageRecord,
    kind: str,
    delta: Delta,
    lines: list[Any],
    reason: str,
    by: User,
    charge: Price | None,
    cost: Price | None,
) -> Adjustment:
    used = [price.pk for price in (charge, cost) if price is not None]
    Price.objects.filter(pk__in=used, first_used_at=None).update(first_used_at=timezone.now())
    currency = cost.currency if cost is not None else None
    return record_adjustment(
        record=record, kind=kind, delta=delta, reason=reason, by=by, lines=lines, cost_currency=currency
    )


def _rated(tokens: dict[str, int], charge: Price, cost: Price | None) -> tuple[Delta, list[Any]]:
    units = {name.removesuffix("_tokens"): count for name, count in tokens.items()} | {"request": 1}
    amounts, lines = {"charge": 0, "cost": 0}, []
    for side, price in (("charge", charge), ("cost", cost)):
        if price is not None:
            amounts[side], rows = rate(rates_of(price), units)
            lines += [[side, name, count, str(unit), str(amount)] for name, count, unit, amount in rows]
    return Delta(charge=amounts["charge"], cost=amounts["cost"]), lines


def _price(record: UsageRecord, side: str) -> Price | None:
    """The price that was fixed at admission, else the one in force then: the owner's own before the general.

    Of a request that was given to another model, or provider, and whose process died there, the one that was fixed
    is the first's, whom nobody asked.
    """
    model_id = record.catalogue_model_id or 0
    if record.served_model:
        model_id = Model.objects.filter(public_id=record.served_model).values_list("pk", flat=True).first() or 0
    price_id = record.charge_price_id if side == Price.Side.CHARGE else record.cost_price_id
    fixed = Price.objects.filter(pk=price_id or 0).first()
    if fixed is not None and fixed.model_id == model_id and fixed.provider_id in (None, record.provider_id):
        return fixed
    rows = Price.objects.filter(model_id=model_id, side=side, effective_from__lte=record.started_at).order_by(
        "-effective_from", "-id"
    )
    if side == Price.Side.CHARGE:
        rows = rows.filter(currency=record.charge_currency)
        return rows.filter(tenant_id=record.tenant_id).first() or rows.filter(tenant=None).first()
    return rows.filter(provider_id=record.provider_id or 0).first() or rows.filter(provider=None).first()


def _record(item: WorkItem) -> UsageRecord:
    record = find_record(item.request_id)
    if record is None:
        raise ValidationError(f"The record {item.request_id} is no longer in this database.")
    return record


def _still_open(item: WorkItem, kind: str) -> None:
    now = WorkItem.objects.get(pk=item.pk)
    if now.kind != kind:
        raise ValidationError(f"{now.request_id} is {now.kind}, not {kind}.")
    if now.resolved_at is not None:
        raise ValidationError(f"{now.request_id} was resolved already, at {now.resolved_at:%Y-%m-%d %H:%M} UTC.")


def _nothing_pending(record: UsageRecord, delta: Delta) -> None:
    """What rates or resolves a record books all of its charge; a correction made before would count beside it."""
    open_kinds = WorkItem.objects.filter(request_id=record.request_id, resolved_at=None).values_list(
        "kind", flat=True
    )
    if WorkItem.Kind.UNKNOWN in open_kinds:
        raise ValidationError("Its process died, and what it used is not known yet: resolve it in the work queue.")
    if WorkItem.Kind.UNPRICED in open_kinds and (delta.charge or delta.cost):
        raise ValidationError("It has no price yet: add one and rate it in the work queue, then correct the amount.")


def _lock(record: UsageRecord) -> None:
    """As the desk locks: what it decides about this tenant and key waits until we are done, and the reverse."""
    owner: list[int | str] = [record.tenant_id, record.key_id, record.charge_currency]
    with connection.cursor() as cursor:
        cursor.execute("SELECT ledger_lock_owner(%s, %s, %s)", owner)


def _reason(text: str) -> str:
    if not text.strip():
        raise ValidationError({"reason": "Say why: auditors read this."})
    return text.strip()
