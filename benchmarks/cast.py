"""Who calls what: a model with both prices, and populations of tenants with keys and limits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

MODEL = "bench-chat"
PLENTY = 10**15  # of requests, tokens or nano-units: everything is counted, and nobody is refused


@dataclass(frozen=True)
class Population:
    """Tenants with so many keys each. Limited: three limits per key, and one that the tenant's keys share."""

    name: str
    title: str
    tenants: int
    keys_each: int
    limited: bool = True


SINGLE = Population("single", "one key", tenants=1, keys_each=1, limited=False)
UNLIMITED = Population("none", "no limits", tenants=1, keys_each=10, limited=False)
HOT = Population("hot", "one hot tenant", tenants=1, keys_each=10)
FIFTY = Population("fifty", "fifty tenants", tenants=50, keys_each=1)
# Those that are compared with each other.
POPULATIONS = (HOT, FIFTY, UNLIMITED)


@dataclass(frozen=True)
class Key:
    public_id: str
    secret: str


def seed_catalogue(base_url: str) -> None:
    from gateway.catalogue.models import Deployment, Model, Price, Provider

    provider = Provider.objects.create(
        name="mock", protocol=Provider.Protocol.OPENAI, base_url=base_url, credential="sk-mock"
    )
    model = Model.objects.create(public_id=MODEL, context_window=128_000, max_output_tokens=16_000)
    Deployment.objects.create(model=model, provider=provider, upstream_model="gpt-4o-mini")
    rates = {"input": 150_000_000, "cached_input": 75_000_000, "output": 600_000_000}
    since = datetime(2026, 1, 1, tzinfo=UTC)
    for side in (Price.Side.CHARGE, Price.Side.COST):
        Price.objects.create(model=model, side=side, currency="USD", effective_from=since, **rates)


def seed(population: Population) -> list[Key]:
    """Its tenants, keys and limits. Returns the keys, those of a tenant together."""
    from tenants.models import Tenant
    from tenants.services import issue_key

    keys = []
    for number in range(population.tenants):
        name = f"{population.name}-{number}"
        tenant = Tenant.objects.create(slug=name, name=name, allowed_models=["*"])
        if population.limited:
            _limit(tenant=tenant, metric="spend", per="month", currency="USD")
        for position in range(population.keys_each):
            key, secret = issue_key(tenant=tenant, name=f"key {position}")
            keys.append(Key(key.public_id, secret))
            if population.limited:
                _limit(key=key, metric="requests", per="minute")
                _limit(key=key, metric="tokens", per="minute")
                _limit(key=key, metric="spend", per="month", currency="USD", hold="hard")
    return keys


def _limit(**fields: Any) -> None:
    from gateway.limits.models import LimitRule

    LimitRule.objects.create(amount=PLENTY, **fields)
