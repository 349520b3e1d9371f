"""GET /limits: what the calling key may still use, and why a request was refused. Ours, in OpenAI's manners.

What a limit on a model for everybody has counted is others' use too: of those a key sees the amount alone.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
from django.http import HttpResponse
from ninja import Router

from apiv1.bodies import printable
from apiv1.requests import ApiRequest
from gateway import pipeline, routing, snapshots
from gateway.catalogue.pricing import format_amount
from gateway.errors import NotFound
from gateway.identifiers import parse_request_id
from gateway.ledger.explanation import NOTHING_KEPT, as_json, explain
from gateway.limits import rate_headers
from gateway.limits.facts import Rule
from gateway.limits.standings import Window, read_windows
from tenants.facts import Caller

router = Router(tags=["Limits"])


@router.get("/limits", summary="Limits of this key", operation_id="listLimits")
async def list_limits(request: ApiRequest) -> HttpResponse:
    """The limits that watch the calling key: its own, its tenant's, its plan's, and those of models that it may call.

    Counts are whole numbers, amounts of spend decimal strings. Not paginated.
    """
    caller = await pipeline.ensure_fresh(request.auth, request.reload)
    models = {facts.id: facts.public_id for facts in routing.permitted(await snapshots.catalogue(), caller)}
    rules = [rule for rule in await snapshots.rules_of(caller) if _watches(rule, caller, models)]
    windows = await _windows([rule for rule in rules if not rule.shared], caller)
    known = {window.rule.id: window for window in windows}
    data = [limit_object(rule, known.get(rule.id), models) for rule in rules]
    body = {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": False,
    }
    headers = _headers([window for window in windows if window.rule.model_id is None])
    return HttpResponse(orjson.dumps(body), content_type="application/json", headers=headers)


@router.get("/limits/explain/{request_id}", summary="Explain a decision", operation_id="explainLimits")
async def explain_request(request: ApiRequest, request_id: str) -> HttpResponse:
    """Why a request of this tenant was admitted or refused: each limit that was looked at, in order.

    `request_id` is the x-request-id. Of a flood of refusals not each one is kept; what is kept is kept for 30 days.
    """
    caller = await pipeline.ensure_fresh(request.auth, request.reload)
    found = parse_request_id(request_id)
    said = None if found is None else await pipeline.read(_explained, found, caller.tenant_id)
    if said is None:
        raise NotFound(f"No decision on a request '{printable(request_id, 100)}' was found. {NOTHING_KEPT}")
    return HttpResponse(orjson.dumps(said), content_type="application/json", headers=await rates_of(caller))


def _explained(request_id: UUID, tenant_id: int) -> dict[str, Any] | None:
    explanation = explain(request_id, tenant_id=tenant_id)
    return None if explanation is None else as_json(explanation)


async def rates_of(caller: Caller) -> dict[str, str]:
    """The x-ratelimit headers of an answer that counts as no request."""
    rules = [rule for rule in await snapshots.rules_of(caller) if rule.model_id is None and rule.shown_in_headers]
    return _headers(await _windows(rules, caller))


async def _windows(rules: list[Rule], caller: Caller) -> list[Window]:
    return await pipeline.read(read_windows, rules, caller.zone) if rules else []


def _headers(windows: list[Window]) -> dict[str, str]:
    return rate_headers.headers(window.standing for window in windows)


def _watches(rule: Rule, caller: Caller, models: dict[int, str]) -> bool:
    return (rule.model_id is None or rule.model_id in models) and rule.currency in ("", caller.currency)


def limit_object(rule: Rule, window: Window | None, models: dict[int, str]) -> dict[str, Any]:
    """`window` None: what is used is not for this key to see."""
    amount = rule.amount_at(datetime.now(UTC)) if window is None else window.amount
    resets_at = None if window is None or window.resets_at is None else int(window.resets_at.timestamp())
    return {
        "id": f"limit_{rule.id}",
        "object": "limit",
        "scope": rule.scope,
        "model": None if rule.model_id is None else models[rule.model_id],
        "metric": rule.metric,
        "tokens": rule.tokens if rule.metric == "tokens" else None,
        "per": rule.per or None,
        "currency": rule.currency or None,
        "amount": _number(rule, amount),
        "used": None if window is None else _number(rule, window.used),
        "held": None if window is None else _number(rule, window.held),
        "remaining": None if window is None else _number(rule, window.left),
        "resets_at": resets_at,
        "mode": rule.mode,
        "hold": rule.hold,
        "on_shortage": rule.on_shortage,
    }


def _number(rule: Rule, value: int) -> int | str:
    return format_amount(value, 2) if rule.metric == "spend" else value
