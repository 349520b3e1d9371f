"""The live feed's page: the newest records to begin with, then what the WebSocket brings."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from gateway.console.consumers import PERMISSION
from gateway.console.dashboard import TOKENS
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
        "at": record.ended_at.timestamp(),
        "tenant": record.tenant.slug,
        "key": record.key.name,
        "model": record.model,
        "status": record.status,
        "tokens": sum(getattr(record, name) for name in TOKENS),
        "ms": round((record.ended_at - record.started_at).total_seconds() * 1000),
    }
