"""From a validated request to an order: which model, where, at which price, with which cap. Pure decisions.

Everything is decided on snapshots; a refusal counts only after the desk has confirmed that they are fresh
(`pipeline._admit`).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from gateway import clock
from gateway.catalogue.pricing import Rates, dearest
from gateway.catalogue.snapshot import Catalogue, ModelFacts
from gateway.errors import GatewayError, ModelNotFound, PermissionDenied
from gateway.failover.attempts import Trip
from gateway.failover.legs import Leg, fallback_of, legs_for
from gateway.ledger.decisions import unasked
from gateway.ledger.items import EarlyRefusal, Gate, Order
from gateway.limits.claims import Claim, Need, Unbounded, affordable_output, applicable, claims_for, make_claim
from gateway.limits.facts import Rule
from gateway.limits.refusals import at_capacity, too_large_anywhere, unbounded
from gateway.limits.refusals_log import LACKS
from gateway.sizing import capped, fitting, need_of
from gateway.upstreams.base import Adapter, Face, Target
from gateway.upstreams.registry import adapter_for
from tenants.facts import Caller

NO_SUCH_MODEL = "The model `{}` does not exist or you do not have access to it."
UNCAPPED = 2**31

Move = Callable[[Order, list[Gate]], Awaitable[bool]]


@dataclass(slots=True)
class Route:
    """Where an admitted request may go, in order, and how its answer must look."""

    order: Order
    legs: list[Leg]
    facts: ModelFacts  # of the model that was asked for
    request: dict[str, Any]  # what goes upstream, in OpenAI's form
    include_usage: bool
    rules: dict[int, Rule]
    need: Need
    cap: int  # on the completion of one choice; 0: none
    now: datetime
    trip: Trip = field(init=False)  # once it is admitted

    def depart(self, move: Move) -> None:
        """Admitted. `move` takes the hold to another deployment, where some have limits of their own."""
        order, facts = self.order, self.facts
        self.trip = Trip(
            self.legs,
            first=self.first,
            stream=order.stream,
            most=facts.max_attempts,
            within_s=facts.retry_within_s,
            move=(lambda leg: move(order, [leg.gate])) if order.candidates else None,
            tenant=order.caller.tenant_id,
        )

    @property
    def choices(self) -> int:
        return self.request.get("n") or 1

    @property
    def first(self) -> Leg:
        """Where the desk has admitted it to."""
        if not self.order.candidates:
            return self.legs[0]
        return next(leg for leg in self.legs if leg.deployment_id == self.order.deployment_id)

    def enter(self, leg: Leg) -> tuple[Adapter, Target, dict[str, Any], Face]:
        """What calling this one takes; the order is booked there from now on."""
        order, facts, target = self.order, leg.facts, leg.placement.target
        order.deployment_id, order.provider_id = target.deployment_id, target.provider_id
        order.charge_rates, order.cost_rates = leg.charge_rates, facts.cost_rates(target.provider_id, self.now)
        request = self.request
        if facts is self.facts:
            order.served_model = ""
        else:
            order.served_model = facts.public_id
            request = fitting(request, self.cap, facts.max_output_tokens)
        return adapter_for(target.protocol), target, request, _face(facts, order.request_id, self.include_usage)


def find_model(catalogue: Catalogue, caller: Caller, name: str) -> ModelFacts:
    facts = catalogue.model_for(caller, name)
    if facts is None:
        raise ModelNotFound(NO_SUCH_MODEL.format(name))
    return facts


def permitted(catalogue: Catalogue, caller: Caller) -> list[ModelFacts]:
    return [
        facts for facts in catalogue.models if caller.may_call(facts.public_id) and served(catalogue, caller, facts)
    ]


def served(catalogue: Catalogue, caller: Caller, facts: ModelFacts) -> bool:
    """Anywhere at all: by deployments of its own, or by those of a fallback that this caller may call."""
    if facts.deployments:
        return True
    others = (catalogue.model_for(caller, name) for name in facts.fallbacks)
    return any(other is not None and other.deployments for other in others)


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
    request, cap = capped(body, facts, lowered)
    watching = applicable(rules, facts.id, caller.currency)
    need = need_of(request, watching, caller.key_id, facts.id, cap)
    rates = _priced(facts, caller, name, now)
    legs = legs_for(catalogue, facts, rates, caller, now=now, need=need, request=request, stream=stream)
    first = legs[0]
    order = Order(
        request_id=request_id,
        caller=caller,
        catalogue_version=catalogue.version,
        endpoint=endpoint,
        stream=stream,
        model=facts.public_id,
        catalogue_model_id=facts.id,
        deployment_id=first.deployment_id,
        provider_id=first.provider_id,
        input_tokens=need.input_expected,
        output_tokens=need.output_expected,
        charge_rates=first.charge_rates,
        cost_rates=first.facts.cost_rates(first.provider_id, now),
        lowered=lowered,
    )
    if len(legs) > 1 or first.placement.limited:
        _prepare_for_others(order, legs, now)
    if watching:
        # One without a price has no bound, whatever the others cost.
        priced = all(leg.charge_rates is not None for leg in legs)
        most = (order.hold_rates or first.charge_rates) if priced else None
        order.claims = _claims(watching, need, most, caller, now, name)
    return Route(order, legs, facts, request, include_usage, {rule.id: rule for rule in watching}, need, cap, now)


def _prepare_for_others(order: Order, legs: Sequence[Leg], now: datetime) -> None:
    """What the first leg alone would not need: limits of deployments, the dearest price, other prices' first use."""
    if any(leg.placement.limited for leg in legs):
        order.candidates = [leg.gate for leg in legs]
    charged = {leg.charge_rates.price_id: leg.charge_rates for leg in legs if leg.charge_rates is not None}
    if len(charged) > 1:
        order.hold_rates = dearest(list(charged.values()))
    costs = [leg.facts.cost_rates(leg.provider_id, now) for leg in legs]
    order.other_rates = [*charged.values(), *(rates for rates in costs if rates is not None)]


def _priced(facts: ModelFacts, caller: Caller, name: str, now: datetime) -> Rates | None:
    """What the model is charged at; None: unpriced, and that is allowed."""
    rates = facts.charge_rates(caller.tenant_id, caller.currency, now)
    if rates is None and facts.refuse_unpriced and facts.deployments:
        raise PermissionDenied(
            f"The model `{name}` has no price in {caller.currency} yet, so it cannot be used. "
            "Please ask your administrator to set one.",
            code="model_not_priced",
            param="model",
        )
    return rates


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
    facts = catalogue.model_for(caller, name)
    if facts is not None:
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


def without_room(route: Route, catalogue: Catalogue, name: str, wait_ms: int | None) -> GatewayError:
    """No deployment takes it: now, or ever, since it is more than any of them takes in a minute. One that is out now,
    and would take it, is worth waiting for."""
    asked, caller = route.need.input_expected + route.need.output_expected, route.order.caller
    others = (fallback_of(catalogue, other, caller, route.now) for other in route.facts.fallbacks)
    models = [route.facts, *(found[0] for found in others if found)]
    limits = [place.tpm for model in models for place in model.deployments]
    if all(0 < limit < asked for limit in limits):
        return too_large_anywhere(name, max(limits), asked)
    return at_capacity(name, wait_ms)


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
        rates = route.order.hold_rates or route.order.charge_rates
        cap = min(cap, affordable_output(rule, available, need=route.need, rates=rates, choices=route.choices))
        floor = max(floor, rule.floor)
    return cap if floor <= cap < most else None
