"""GET /limits: what the calling key may still use, why a request was refused, and whether one would be.

Ours, in OpenAI's manners. What a limit on a model for everybody has counted is others' use too: of those a key sees
the amount alone.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
from django.http import HttpResponse
from ninja import P, QueryEx, Router

from apiv1.bodies import printable
from apiv1.requests import ApiRequest
from apiv1.schemas.faults import missing, shortened, too_high, too_low
from gateway import pipeline, routing, snapshots
from gateway.catalogue.pricing import format_amount
from gateway.catalogue.snapshot import Catalogue
from gateway.errors import InvalidRequest, ModelNotFound, NotFound
from gateway.identifiers import parse_request_id
from gateway.ledger import simulator
from gateway.ledger.explanation import NOTHING_KEPT, as_json, explain
from gateway.ledger.simulator import EARLIEST, LATEST, MOST_TOKENS, Question
from gateway.limits import rate_headers
from gateway.limits.facts import Rule
from gateway.limits.standings import Window, read_windows
from gateway.reports.asking import short_query
from gateway.reports.selection import BadSelection
from tenants.facts import Caller

router = Router(tags=["Limits"])

QUERY_MS = 1_000  # the thread that reads is the one that looks up keys
INSTANT = "An instant is Unix seconds, or ISO 8601 with its offset, such as 2026-12-24T18:00:00Z"


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


@router.get("/limits/simulate", summary="Would it be allowed?", operation_id="simulateLimits")
async def simulate_request(
    request: ApiRequest,
    model: QueryEx[str, P(description="id or alias")] = "",
    input_tokens: QueryEx[str, P(description="tokens of the prompt; default: 0")] = "0",
    output_tokens: QueryEx[str, P(description="tokens of the completion; default: 0")] = "0",
    at: QueryEx[str, P(description=f"{INSTANT}; default: now")] = "",
) -> HttpResponse:
    """Whether the calling key would be allowed so many tokens of a model, now or at another time, limit by limit.

    The same rules and arithmetic as a request; nothing is counted or held, and nothing is promised.
    """
    caller = await pipeline.ensure_fresh(request.auth, request.reload)
    now = datetime.now(UTC)
    question = Question(
        model=model,
        input_tokens=_tokens("input_tokens", input_tokens),
        output_tokens=_tokens("output_tokens", output_tokens),
        at=_instant(at) if at else now,
        now=now,
    )
    if not model:
        raise missing("model")
    catalogue, rules = await snapshots.catalogue(), await snapshots.rules_of(caller)
    try:
        routing.find_model(catalogue, caller, model)
    except ModelNotFound:
        raise ModelNotFound(routing.NO_SUCH_MODEL.format(printable(model, 200)), param="model") from None
    try:
        said = await pipeline.read(_simulated, question, catalogue, caller, rules)
    except BadSelection:
        raise InvalidRequest("That takes too long to look up. Ask for now or later.", param="at") from None
    return HttpResponse(orjson.dumps(said), content_type="application/json", headers=await rates_of(caller))


def _simulated(question: Question, catalogue: Catalogue, caller: Caller, rules: tuple[Rule, ...]) -> dict[str, Any]:
    with short_query(QUERY_MS):
        return simulator.as_json(simulator.answer(question, catalogue, caller, rules, hide_shared=True))


def _tokens(name: str, text: str) -> int:
    if not re.fullmatch(r"-?[0-9]+", text):
        raise InvalidRequest(
            f"Invalid '{name}': expected a whole number, but got '{printable(shortened(text), 300)}' instead.",
            param=name,
            code="invalid_type",
        )
    number = int(text[:20])  # enough to be out of range, and Python reads no more than 4,300 digits
    if number < 0:
        raise too_low(name, "integer", 0, number)
    if number > MOST_TOKENS:
        raise too_high(name, "integer", MOST_TOKENS, number)
    return number


def _instant(text: str) -> datetime:
    """Raises InvalidRequest for what is no instant: a time without an offset is another one everywhere."""
    text = re.sub(r"^(.+T.+) (\d\d:?\d\d)$", r"\1+\2", text)  # a plus sign that nobody escaped is a space
    try:
        number = int(text) if re.fullmatch(r"[0-9]{1,11}", text) else None
        at = datetime.fromtimestamp(number, UTC) if number is not None else datetime.fromisoformat(text)
        if at.tzinfo is not None and EARLIEST <= at < LATEST:
            return at
        problem = f"expected an instant between {EARLIEST:%Y} and {LATEST:%Y}" if at.tzinfo else "it has no offset"
    except (ValueError, OverflowError):
        problem = f"'{printable(shortened(text), 300)}' is no instant"
    raise InvalidRequest(f"Invalid 'at': {problem}. {INSTANT}.", param="at", code="invalid_value")


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
