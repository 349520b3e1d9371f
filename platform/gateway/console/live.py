"""The live feed's page: the newest records to begin with, then what the WebSocket brings."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from gateway.catalogue.pricing import format_amount
from gateway.console.consumers import PERMISSION
from gateway.ledger.models import UsageRecord

FIRST = 25


def page(request: HttpRequest) -> HttpResponse:
    if not request.user.has_perm(PERMISSION):
        raise PermissionDenied
    newest = UsageRecord.objects.select_related("tenant", "key").order_by("-request_id")[:FIRST]
    context = {
        **admin.site.each_context(request),
        "title": "Live feed",
        "events": [_event(record) for record in reversed(newest)],
    }
    return render(request, "console/live.html", context)


def _event(record: Any) -> dict[str, Any]:
    """A record in the form of `feed`'s events."""
    return {
        "request_id": str(record.request_id),
        "ended_at": record.ended_at.isoformat(),
        "tenant": record.tenant.slug,
        "key": record.key.public_id,
        "model": record.model,
        "status": record.status,
        "http_status": record.http_status,
        "error_code": record.error_code,
        "input_tokens": record.input_tokens + record.cached_input_tokens + record.cache_write_tokens,
        "output_tokens": record.output_tokens + record.reasoning_tokens,
        "charge": None if record.charge is None else format_amount(record.charge),
        "currency": record.charge_currency,
        "duration_ms": int((record.ended_at - record.started_at).total_seconds() * 1000),
    }
