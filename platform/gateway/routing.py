"""From a validated request to an order: which model, where, at which price, with which cap. Pure decisions.

Everything is decided on snapshots; a refusal counts only after the desk has confirmed that they are fresh
(`pipeline._admit`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.conf import settings

from gateway.catalogue.snapshot import Catalogue, ModelFacts
from gateway.errors import InvalidRequest, ModelNotFound, PermissionDenied, Unavailable
from gateway.ledger.items import Order
from gateway.upstreams import tokens
from gateway.upstreams.base import Adapter, Face, Target
from gateway.upstreams.registry import adapter_for
from tenants.facts import Caller

NO_SUCH_MODEL = "The model `{}` does not exist or you do not have access to it."
CAPS = ("max_completion_tokens", "max_tokens")


@dataclass(slots=True)
class Route:
    """Where an admitted request goes, and how its answer must look."""

    order: Order
    adapter: Adapter
    target: Target
    request: dict[str, Any]  # what goes upstream, in OpenAI's form
    face: Face


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
) -> Route:
    facts = find_model(catalogue, caller, name)
    target = facts.choose()
    if target is None:
        raise Unavailable(f"The model `{name}` is not available at the moment.", retry_after=30)
    now = datetime.now(UTC)
    charge_rates = facts.charge_rates(caller.tenant_id, caller.currency, now)
    if charge_rates is None and facts.refuse_unpriced:
        raise PermissionDenied(
            f"The model `{name}` has no price in {caller.currency} yet, so it cannot be used. "
            "Please ask your administrator to set one.",
            code="model_not_priced",
            param="model",
        )
    request, cap = _capped(body, facts)
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
        input_tokens=tokens.guess_request(request),
        output_tokens=cap * (body.get("n") or 1),
        charge_rates=charge_rates,
        cost_rates=facts.cost_rates(target.provider_id, now),
    )
    face = Face(
        id=f"chatcmpl-{request_id.hex}",
        created=int(time.time()),
        model=facts.public_id,
        reasoning_field=facts.reasoning_field,
        include_usage=include_usage,
    )
    return Route(order, adapter_for(target.protocol), target, request, face)


def _capped(body: dict[str, Any], facts: ModelFacts) -> tuple[dict[str, Any], int]:
    """The request with a cap on its output where it sets none, and the cap that is in force (0: none)."""
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
