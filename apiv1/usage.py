"""GET /usage: what the calling key has used. Not OpenAI's (theirs is /organization/usage), in OpenAI's manners.

A key sees its own usage and nobody else's, not even that of its tenant's other keys; and what it was charged,
never what the provider charged for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson
from django.http import HttpResponse
from ninja import P, QueryEx, Router

from apiv1.limits import rates_of
from apiv1.requests import ApiRequest
from gateway import pipeline
from gateway.billing.facts import MEASURES
from gateway.catalogue.pricing import format_amount
from gateway.errors import InvalidRequest
from gateway.reports import request_lines, snapshot
from gateway.reports.asking import short_query
from gateway.reports.day_sums import Key, newest_sums
from gateway.reports.request_lines import RequestLine
from gateway.reports.selection import BadSelection, Selection, parse_day
from tenants.facts import Caller

router = Router(tags=["Usage"])

DEFAULT_DAYS = 30
DEFAULT_LIMIT, MAX_LIMIT = 20, 100
QUERY_MS = 1_000  # the thread that reads is the one that looks up keys
# What a day is summed by: never the currency of our cost.
DIMENSIONS = ("local_date", "model", "kind", "charge_currency")
_REQUEST_ID = re.compile(r"req_([0-9a-f]{32})", re.ASCII)
_DAY_ID = re.compile(r"day_(\d{4}-\d\d-\d\d)\.([a-z_]+)\.([A-Z]{3})\.(.{1,200})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the list, ready for the envelope."""

    data: list[dict[str, Any]]
    has_more: bool


@router.get("/usage", summary="Usage of this key", operation_id="listUsage")
async def list_usage(
    request: ApiRequest,
    first: QueryEx[str, P(alias="from", description="first day, YYYY-MM-DD; default: 30 days up to `to`")] = "",
    last: QueryEx[str, P(alias="to", description="last day, included; default: today")] = "",
    by: QueryEx[str, P(description="request or day")] = "request",
    limit: QueryEx[str, P(description=f"1 to {MAX_LIMIT}")] = str(DEFAULT_LIMIT),
    after: QueryEx[str, P(description="the id of the last item of the page before")] = "",
) -> HttpResponse:
    """The calling key's own usage, newest first, by request or summed by day. Days are the tenant's own."""
    caller = await pipeline.ensure_fresh(request.auth, request.reload)
    try:
        selection = _selection(caller, first, last, by, datetime.now(UTC))
        page = await pipeline.read(_requests if by == "request" else _days, selection, _limit(limit), after)
    except BadSelection as problem:
        raise InvalidRequest(str(problem), param=problem.parameter, code="invalid_value") from None
    ids = [item["id"] for item in page.data]
    body = {
        "object": "list",
        "data": page.data,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": page.has_more,
    }
    return HttpResponse(orjson.dumps(body), content_type="application/json", headers=await rates_of(caller))


def _selection(caller: Caller, first: str, last: str, by: str, now: datetime) -> Selection:
    if by not in ("request", "day"):
        raise BadSelection("by", f"Invalid value: '{by}'. Supported values are: 'request' and 'day'.")
    end = parse_day("to", last) if last else now.astimezone(ZoneInfo(caller.timezone)).date()
    begin = parse_day("from", first) if first else date.fromordinal(max(end.toordinal() - DEFAULT_DAYS + 1, 1))
    return Selection(
        first=begin,
        last=end,
        by="day" if by == "day" else "request",
        tenant_id=caller.tenant_id,
        key_id=caller.key_id,
    )


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_LIMIT:
        raise BadSelection("limit", f"Invalid 'limit': expected a whole number from 1 to {MAX_LIMIT}.")
    return int(text)


def _requests(selection: Selection, limit: int, after: str) -> Page:
    before = UUID(_parsed(_REQUEST_ID, after)[0]) if after else None
    with short_query(QUERY_MS):
        lines, more = request_lines.newest(selection, snapshot.take(), limit=limit, before=before)
    items: list[dict[str, Any]] = []
    for line in lines:
        if line.line == "usage":
            items.append(_request_item(line))
        elif items:  # an adjustment follows the request that it corrects
            items[-1]["adjustments"].append(_adjustment_item(line))
    return Page(items, more)


def _days(selection: Selection, limit: int, after: str) -> Page:
    before: Key | None = None
    if after:
        day, kind, currency, model = _parsed(_DAY_ID, after)
        before = (parse_day("after", day), model, "" if kind == "usage" else kind, currency)
    with short_query(QUERY_MS):
        groups, more = newest_sums(selection, DIMENSIONS, limit=limit, before=before)
    return Page([_day_item(key, measures) for key, measures in groups.items()], more)


def _parsed(shape: re.Pattern[str], after: str) -> tuple[str, ...]:
    match = shape.fullmatch(after)
    if match is None:
        raise BadSelection("after", "Invalid 'after': give the `last_id` of the page before, with the same `by`.")
    return match.groups()


def _request_item(line: RequestLine) -> dict[str, Any]:
    return {
        "id": "req_" + line.request_id.hex,
        "object": "usage.request",
        "created": int(line.started_at.timestamp()),
        "date": line.local_date.isoformat(),
        "model": line.model,
        "served_model": line.served_model or line.model,
        "endpoint": line.endpoint,
        "stream": line.stream,
        "status": line.status,
        "estimated": line.estimated,
        "usage": _tokens(line),
        "currency": line.charge_currency,
        "charge": None if line.charge is None else format_amount(line.charge),
        "client_request_id": line.client_request_id,
        "end_user": line.end_user,
        "adjustments": [],
    }


def _adjustment_item(line: RequestLine) -> dict[str, Any]:
    return {
        "object": "usage.adjustment",
        "kind": line.kind,
        "created": int(line.booked_at.timestamp()),
        "usage": _tokens(line),
        "currency": line.charge_currency,
        "charge": format_amount(line.charge or 0),
    }


def _tokens(line: RequestLine) -> dict[str, int]:
    return {
        "input_tokens": line.input_tokens,
        "cached_input_tokens": line.cached_input_tokens,
        "cache_write_tokens": line.cache_write_tokens,
        "output_tokens": line.output_tokens,
        "reasoning_tokens": line.reasoning_tokens,
        "total_tokens": line.total_tokens,
    }


def _day_item(key: Key, measures: list[int]) -> dict[str, Any]:
    day, model, kind, currency = key
    sums = dict(zip(MEASURES, measures, strict=True))
    classes = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
    tokens = {name: sums[name] for name in classes}
    return {
        "id": f"day_{day}.{kind or 'usage'}.{currency}.{model}",
        "object": "usage.day",
        "date": str(day),
        "model": model,
        "kind": kind or "usage",
        "requests": sums["requests"],
        "errors": sums["errors"],
        "unpriced": sums["unpriced"],
        "usage": {**tokens, "total_tokens": sum(tokens.values())},
        "currency": currency,
        "charge": format_amount(sums["charge"]),
    }
