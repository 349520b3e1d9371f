"""From a validated request to an order: which model, where, at which price, with which cap. Pure decisions.

Everything is decided on snapshots; a refusal counts only after the desk has confirmed that they are fresh
(`pipeline._admit`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from django.conf import settings

from gateway import clock
from gateway.catalogue.pricing import Rates
from gateway.catalogue.snapshot import Catalogue, ModelFacts
from gateway.errors import GatewayError, InvalidRequest, ModelNotFound, PermissionDenied, Unavailable
from gateway.ledger.decisions import unasked
from gateway.ledger.items import EarlyRefusal, Order
from gateway.limits.claims import Claim, Need, Unbounded, affordable_output, applicable, claims_for, make_claim
from gateway.limits.expectations import expectations
from gateway.limits.facts import Rule
from gateway.limits.refusals import unbounded
from gateway.limits.refusals_log import LACKS
from gateway.upstreams import tokens
from gateway.upstreams.base import Adapter, Face, Target
from gateway.upstreams.registry import adapter_for
from tenants.facts import Caller

NO_SUCH_MODEL = "The model `{}` does not exist or you do not have access to it."
CAPS = ("max_completion_tokens", "max_tokens")
UNCAPPED = 2**31
MEDIA = frozenset({"image_url", "input_audio", "file"})  # parts whose tokens have no bound that we know


@dataclass(slots=True)
class Route:
    """Where an admitted request goes, and how its answer must look."""

    order: Order
    adapter: Adapter
    target: Target
    request: dict[str, Any]  # what goes upstream, in OpenAI's form
    face: Face
    rules: dict[int, Rule]
    need: Need
    cap: int  # on the completion of one choice; 0: none

    @property
    def choices(self) -> int:
        return self.request.get("n") or 1


def find_model(catalogue: Catalogue, caller: Caller, name: str) -> ModelFacts:
    """By public id or alias. A model that the key may not call does not exist for it."""
    facts = catalogue.by_name.get(name)
    if facts is None or not caller.may_call(facts.public_id):
        raise ModelNotFound(NO_SUCH_MODEL.format(name))
    return facts


def permitted(catalogue: Catalogue, caller: Caller) -> list[ModelFacts]:
    return [facts for facts in catalogue.models if facts.deployments and caller.may_call(facts.public_id)]


def choose_route(
    catalogue: Catalogue,
    caller: Caller,
    *,
    request_id: UUID,
    endpoint: str,
    name: str,
    body: dict[str, Any],
    stream: bool,
    include_usage: bool,
    rules: Sequence[Rule] = (),
    now: datetime | None = None,
    lowered: int | None = None,
) -> Route:
    """The route and its order. `lowered` is the cap that a limit of `on_shortage: fit` has left."""
    facts = find_model(catalogue, caller, name)
    now = now or clock.now()
    target, charge_rates = _served(facts, caller, name, now)
    request, cap = _capped(body, facts, lowered)
    watching = applicable(rules, facts.id, caller.currency)
    need = _need(request, watching, caller.key_id, facts.id, cap)
    order = Order(
        request_id=request_id,
        caller=caller,
        catalogue_version=catalogue.version,
        endpoint=endpoint,
        stream=stream,
        model=facts.public_id,
        catalogue_model_id=facts.id,
        deployment_id=target.deployment_id,
        provider_id=target.provider_id,
        input_tokens=need.input_expected,
        output_tokens=need.output_expected,
        charge_rates=charge_rates,
        cost_rates=facts.cost_rates(target.provider_id, now),
        lowered=lowered,
        claims=_claims(watching, need, charge_rates, caller, now, name) if watching else [],
    )
    adapter, face = adapter_for(target.protocol), _face(facts, request_id, include_usage)
    return Route(order, adapter, target, request, face, {rule.id: rule for rule in watching}, need, cap)


def _served(facts: ModelFacts, caller: Caller, name: str, now: datetime) -> tuple[Target, Rates | None]:
    """Where the model is served and what it is charged at; None: unpriced, and that is allowed."""
    target = facts.choose()
    if target is None:
        raise Unavailable(f"The model `{name}` is not available at the moment.", retry_after=30)
    rates = facts.charge_rates(caller.tenant_id, caller.currency, now)
    if rates is None and facts.refuse_unpriced:
        raise PermissionDenied(
            f"The model `{name}` has no price in {caller.currency} yet, so it cannot be used. "
            "Please ask your administrator to set one.",
            code="model_not_priced",
            param="model",
        )
    return target, rates


def _claims(
    rules: Sequence[Rule], need: Need, rates: Rates | None, caller: Caller, now: datetime, name: str
) -> list[Claim]:
    try:
        return claims_for(rules, need=need, rates=rates, zone=caller.zone, now=now)
    except Unbounded as exc:
        raise unbounded(exc, model=name) from exc


def early_refusal(
    error: GatewayError, catalogue: Catalogue, caller: Caller, name: str, now: datetime | None = None
) -> EarlyRefusal:
    """What is kept of a refusal by `choose_route`, so that it can be explained."""
    facts = catalogue.by_name.get(name)
    if facts is not None and caller.may_call(facts.public_id):
        model = facts.public_id
    else:  # PostgreSQL's text holds no NUL, JSON no lone surrogate; and a name may be as long as a body
        model = "".join(letter if letter.isprintable() else " " for letter in name[:200])
    cause = error.__cause__
    if not isinstance(cause, Unbounded):
        return EarlyRefusal((error.code or "unavailable")[:32], model)
    now = now or clock.now()
    claim = make_claim(cause.rule, caller.zone, now, cause.rule.amount_at(now))
    return EarlyRefusal(
        reason=LACKS[cause.lacks],
        model=model,
        input_tokens=cause.need.input_expected,
        output_tokens=cause.need.output_expected,
        decided=[unasked(claim)],
    )


def _face(facts: ModelFacts, request_id: UUID, include_usage: bool) -> Face:
    return Face(
        id=f"chatcmpl-{request_id.hex}",
        created=int(time.time()),
        model=facts.public_id,
        reasoning_field=facts.reasoning_field,
        include_usage=include_usage,
    )


def fitted(route: Route, states: Sequence[dict[str, Any]]) -> int | None:
    """The lower cap with which a request fits into every limit that refused it; None: it cannot be made to."""
    most = cap = route.cap or UNCAPPED
    floor = 1
    for state in states:
        if state["fits"] or not state["enforce"]:
            continue
        rule = route.rules[state["rule"]]
        if rule.on_shortage != "fit":
            return None
        available = int(state["amount"] - state["taken"])
        rates = route.order.charge_rates
        cap = min(cap, affordable_output(rule, available, need=route.need, rates=rates, choices=route.choices))
        floor = max(floor, rule.floor)
    return cap if floor <= cap < most else None


def _lowered(request: dict[str, Any], cap: int) -> dict[str, Any]:
    set_already = [name for name in CAPS if request.get(name) is not None]
    return {**request, **dict.fromkeys(set_already or ["max_tokens"], cap)}


def _need(request: dict[str, Any], rules: Sequence[Rule], key_id: int, model_id: int, cap: int) -> Need:
    """Expected and worst use. The worst case is worked out only where a hard limit asks for it."""
    hard = any(rule.hold == "hard" for rule in rules)
    choices = request.get("n") or 1
    return Need(
        input_expected=tokens.guess_request(request),
        output_expected=expectations.expect(key_id, model_id, cap) * choices,
        input_worst=_most_input(request) if hard else None,
        output_worst=cap * choices if hard and cap else None,
    )


def _most_input(request: dict[str, Any]) -> int | None:
    """No tokenizer makes more tokens than there are bytes; templates add some per message. None: media parts."""
    messages = request["messages"]
    for message in messages:
        content = message.get("content")
        if isinstance(content, list) and any(part.get("type") in MEDIA for part in content):
            return None
    told = {
        name: value
        for name, value in request.items()
        if name in ("messages", "tools", "functions", "response_format")
    }
    return len(orjson.dumps(told)) + 64 * (len(messages) + 1)


def _capped(body: dict[str, Any], facts: ModelFacts, lowered: int | None) -> tuple[dict[str, Any], int]:
    """The request with a cap on its output where it sets none, and the cap that is in force (0: none)."""
    if lowered is not None:
        return _lowered(body, lowered), lowered
    most = facts.max_output_tokens
    for name in CAPS:
        asked = body.get(name)
        if asked is None:
            continue
        if most is not None and asked > most:
            raise InvalidRequest(
                f"{name} is too large: {asked}. This model supports at most {most} completion tokens, "
                f"whereas you provided {asked}.",
                param=name,
                code="invalid_value",
            )
        return body, asked
    cap = min(settings.MAX_TOKENS or most or 0, most or settings.MAX_TOKENS)
    return ({**body, "max_tokens": cap}, cap) if cap else (body, 0)
