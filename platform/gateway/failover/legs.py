"""The places where a request may be served, in the order in which they are asked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from random import Random
from typing import Any

from gateway.catalogue.pricing import Rates, hold
from gateway.catalogue.snapshot import Catalogue, ModelFacts, Placement
from gateway.errors import Unavailable
from gateway.failover import selection
from gateway.failover.board import State, board
from gateway.failover.load import loads
from gateway.failover.selection import Candidate
from gateway.ledger.items import Gate
from gateway.limits.claims import Need
from tenants.facts import Caller

_random = Random()


@dataclass(slots=True)
class Leg:
    """A place where the request may be served: a deployment of the model that was asked for, or of a fallback."""

    placement: Placement
    facts: ModelFacts
    charge_rates: Rates | None

    @property
    def deployment_id(self) -> int:
        return self.placement.target.deployment_id

    @property
    def provider_id(self) -> int:
        return self.placement.target.provider_id

    @property
    def model(self) -> str:
        return self.facts.public_id

    @property
    def gate(self) -> Gate:
        place = self.placement
        return Gate(self.deployment_id, self.provider_id, place.rpm, place.tpm, place.in_flight)


def legs_for(
    catalogue: Catalogue,
    facts: ModelFacts,
    rates: Rates | None,
    caller: Caller,
    *,
    now: datetime,
    need: Need,
    request: dict[str, Any],
    stream: bool,
) -> list[Leg]:
    """Where it may be served: healthy deployments of the model, then of its fallbacks. Raises Unavailable."""
    legs = [Leg(placement, facts, rates) for placement in _in_order(facts, need, request, stream, now)]
    for name in facts.fallbacks:
        if found := fallback_of(catalogue, name, caller, now):
            legs += [Leg(placement, *found) for placement in _in_order(found[0], need, request, stream, now)]
    if len(legs) == 1 and board.state(legs[0].deployment_id) is State.CLOSED:
        return legs
    # A pause that one asked for is honoured as long as there is another; nobody is refused for it.
    usable = resting_last([leg for leg in legs if board.state(leg.deployment_id) is not State.OPEN])
    if not usable:
        raise unavailable(legs, f"The model `{facts.public_id}` is not available at the moment.")
    # Only where it goes: a fallback that stands by, or one that is out, is not being asked.
    loads[usable[0].deployment_id].picked(time.monotonic(), stream=stream)
    return usable


def resting_last(legs: Sequence[Leg]) -> list[Leg]:
    return sorted(legs, key=lambda leg: board.state(leg.deployment_id) is State.RESTING)


def unavailable(legs: Sequence[Leg], text: str) -> Unavailable:
    """None of them may be asked now; with the wait until the first may."""
    wait_s = min((board.retry_in(leg.deployment_id) for leg in legs), default=30.0)
    return Unavailable(text, retry_after=max(1, ceil(wait_s)))


def fallback_of(
    catalogue: Catalogue, name: str, caller: Caller, now: datetime
) -> tuple[ModelFacts, Rates | None] | None:
    """A fallback that this caller may call, at a price that is known."""
    facts = catalogue.model_for(caller, name)
    if facts is None:
        return None
    rates = facts.charge_rates(caller.tenant_id, caller.currency, now)
    return (facts, rates) if rates is not None else None


def _in_order(
    facts: ModelFacts, need: Need, request: dict[str, Any], stream: bool, now: datetime
) -> Sequence[Placement]:
    placements = facts.deployments
    if len(placements) < 2:
        return placements
    moment, by_cost = time.monotonic(), facts.strategy == selection.LOWEST_COST
    candidates = []
    for placement in placements:
        target = placement.target
        load, cost = loads[target.deployment_id], None
        if by_cost and (rates := facts.cost_rates(target.provider_id, now)) is not None:
            cost = rates.currency, hold(rates, need.input_expected, need.output_expected)
        latency = load.expected_ms(stream=stream, now=moment)
        candidates.append(
            Candidate(target.deployment_id, placement.priority, placement.weight, load.busy(moment), latency, cost)
        )
    key = _sticky_key(request) if facts.sticky else ""
    chosen = selection.ordered(candidates, strategy=facts.strategy, random=_random, sticky_key=key)
    by_id = {placement.target.deployment_id: placement for placement in placements}
    return [by_id[candidate.deployment_id] for candidate in chosen]


def _sticky_key(request: dict[str, Any]) -> str:
    """What says that two requests begin alike: the provider has the beginning in its cache."""
    return str(request.get("prompt_cache_key") or request.get("user") or "")
