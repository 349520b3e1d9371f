"""The desk and cast of tests/ledger, with rules."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.catalogue.models import Model
from gateway.ledger.items import Order
from gateway.limits.claims import Need, applicable, claims_for
from gateway.limits.facts import load_model_rules, load_rules
from gateway.limits.models import LimitRule, Plan, PlanMembership
from tenants.facts import load_callers
from tenants.models import APIKey
from tests.ledger.conftest import (  # noqa: F401
    acme,
    chat_model,
    close_the_threads_connection,
    desk,
    globex,
    order,
)


@pytest.fixture
def limited(order: Callable[..., Order]) -> Callable[..., Order]:  # noqa: F811
    """An order with the claims of the rules that there are, needing (input, output) tokens."""

    def make(key: APIKey | None = None, tokens: tuple[int, int] = (10, 20)) -> Order:
        mine = order(key) if key is not None else order()
        caller = load_callers([mine.caller.public_id])[mine.caller.public_id]
        rules = load_rules(caller.tenant_id, caller.key_id) + load_model_rules()
        watching = applicable(rules, mine.catalogue_model_id, caller.currency)
        need = Need(*tokens, *tokens)
        mine.input_tokens, mine.output_tokens = tokens
        mine.claims = claims_for(
            watching, need=need, rates=mine.charge_rates, zone=caller.zone, now=datetime.now(UTC)
        )
        return mine

    return make


@pytest.fixture
def rule(acme: APIKey) -> Callable[..., LimitRule]:  # noqa: F811
    def make(**fields: Any) -> LimitRule:
        subject = fields if {"tenant", "key", "model", "plan"} & fields.keys() else {"tenant": acme.tenant, **fields}
        return LimitRule.objects.create(**subject)

    return make


@pytest.fixture
def watched(rule: Callable[..., LimitRule], acme: APIKey, chat_model: Model) -> list[LimitRule]:  # noqa: F811
    """Rules of every kind on every subject."""
    plan = Plan.objects.create(slug="basic", name="Basic")
    PlanMembership.objects.create(tenant=acme.tenant, plan=plan)
    much: dict[str, Any] = {"amount": 10**12}
    return [
        rule(metric="requests", per="minute", **much),
        rule(metric="requests", per="day", **much),
        rule(metric="tokens", per="minute", **much),
        rule(metric="tokens", per="day", tokens="input", **much),
        rule(key=acme, metric="tokens", per="day", tokens="output", **much),
        rule(metric="in_flight", per="", **much),
        rule(metric="spend", per="month", currency="USD", **much),
        rule(metric="spend", per="total", currency="USD", **much),
        rule(model=chat_model, metric="tokens", per="day", **much),
        rule(tenant=acme.tenant, model=chat_model, metric="spend", per="day", currency="USD", **much),
        rule(plan=plan, metric="tokens", per="day", **much),
        rule(plan=plan, metric="spend", per="week", currency="USD", mode="observe", **much),
    ]
