"""The admin's first page: today in numbers, from the hourly rollups. Reads no ledger."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db.models import QuerySet, Sum
from django.http import HttpRequest
from django.utils import timezone

from gateway.billing.models import RollupState, UsageHour
from gateway.catalogue.models import Deployment, Price, Provider
from gateway.catalogue.pricing import NANO, format_amount
from gateway.console.navigation import open_work
from gateway.failover.standings import out_of_rotation
from gateway.ledger.models import DriftCheck, DriftFinding
from tenants.models import APIKey, Tenant

TOKENS = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")


def today(request: HttpRequest, now: datetime | None = None) -> dict[str, Any]:
    """The context of console/dashboard.html. The day is UTC's, since tenants have different zones."""
    if not request.user.has_perm("ledger.view_usagerecord"):
        return {"may_see_usage": False}
    now = now or timezone.now()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    hours = UsageHour.objects.filter(hour__gte=midnight)
    totals = hours.aggregate(requests=Sum("requests"), errors=Sum("errors"), unpriced=Sum("unpriced"))
    tokens = hours.aggregate(**{name: Sum(name) for name in TOKENS})
    state = RollupState.objects.order_by("moved_at").first()
    return {
        "may_see_usage": True,
        "day": midnight,
        "now": now,
        "counted_at": state.moved_at if state else None,
        "requests": totals["requests"] or 0,
        "errors": totals["errors"] or 0,
        "unpriced": totals["unpriced"] or 0,
        "tokens": sum(value or 0 for value in tokens.values()),
        "charges": _charges(hours),
        "bars": _bars(now),
        "top_tenants": _top(hours, "tenant__slug"),
        "top_models": _top(hours, "model"),
        "open_work": open_work(),
        "drift": _drift(now),
        "unwell": out_of_rotation(now)[:10] if request.user.has_perm("failover.view_deploymenthealth") else [],
        "next_steps": _next_steps(),
    }


def _charges(hours: QuerySet[UsageHour]) -> list[dict[str, str]]:
    """One line a currency: amounts of different currencies are never added."""
    sums = hours.values("charge_currency").annotate(total=Sum("charge")).order_by("charge_currency")
    return [
        {
            "currency": row["charge_currency"],
            "amount": _rounded(row["total"] or 0),
            "exact": format_amount(row["total"] or 0, 2),
        }
        for row in sums
    ]


def _rounded(nano: Decimal | int) -> str:
    """For a glance: cents, or four places of what is less than one. Exports have every digit.

    What is less than those four places can show is written in full: "0.0000" would say that nothing was charged.
    """
    units = Decimal(nano) / NANO
    if 0 < abs(units) < Decimal("0.0001"):
        return format_amount(nano)
    return f"{units:,.2f}" if abs(units) >= 1 or not units else f"{units:,.4f}"


def _bars(now: datetime) -> list[dict[str, Any]]:
    """Requests and errors of the last 24 hours, with heights in per cent of the highest hour."""
    newest = now.replace(minute=0, second=0, microsecond=0)
    first = newest - timedelta(hours=23)
    sums = UsageHour.objects.filter(hour__gte=first).values("hour").annotate(n=Sum("requests"), bad=Sum("errors"))
    by_hour = {row["hour"]: (row["n"] or 0, row["bad"] or 0) for row in sums}
    highest = max([count for count, _ in by_hour.values()], default=0) or 1
    bars = []
    for step in range(24):
        hour = first + timedelta(hours=step)
        count, bad = by_hour.get(hour, (0, 0))
        height = -(-count * 100 // highest)
        red = -(-bad * height // (count or 1))
        bars.append({"hour": hour, "requests": count, "errors": bad, "bad": red, "good": height - red})
    return bars


def _top(hours: QuerySet[UsageHour], name: str) -> list[dict[str, Any]]:
    rows = hours.values(name).annotate(n=Sum("requests"), bad=Sum("errors")).filter(n__gt=0).order_by("-n", name)[:5]
    return [{"name": row[name], "requests": row["n"], "errors": row["bad"]} for row in rows]


def _drift(now: datetime) -> dict[str, Any]:
    """When counters were last compared with the ledger, how many differed, and what was found in the last day."""
    rounds = list(DriftCheck.objects.filter(checked_at__isnull=False))
    recent = list(DriftFinding.objects.filter(at__gte=now - timedelta(days=1))[:10])
    return {
        "checked_at": min((check.checked_at for check in rounds if check.checked_at), default=None),
        "found": sum(check.last_found for check in rounds),
        "compared": sum(check.last_compared for check in rounds),
        "skipped": sum(check.last_skipped for check in rounds),
        "findings": recent,
    }


def _next_steps() -> list[dict[str, str]]:
    """What a new installation still needs before its first answer, in order."""
    steps = [
        (Provider, "admin:catalogue_provider_add", "Add a provider: where models are served"),
        (Deployment, "admin:catalogue_model_add", "Add a model and where it is deployed"),
        (Price, "admin:catalogue_price_add", "Give it a price"),
        (Tenant, "admin:tenants_tenant_add", "Add a tenant"),
        (APIKey, "admin:tenants_apikey_add", "Issue an API key"),
    ]
    return [{"url": url, "text": text} for model, url, text in steps if not model._default_manager.exists()]
