"""The whole catalogue as one immutable object, for the request path: no query per request.

`load_catalogue` reads it with its version in one transaction; admission compares that version inside the
database and answers "stale" when it is behind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from django.db import transaction

from gateway.catalogue.models import CatalogueVersion, Deployment, Model, Price
from gateway.catalogue.pricing import Rates
from gateway.upstreams.base import Target
from tenants.facts import Caller

Owner = tuple[str, int | None, str]  # side, tenant or provider, currency ("" for a cost in any currency)


class Placement(NamedTuple):
    """A deployment: where it is and how it shares. A limit of its own of 0: none."""

    target: Target
    priority: int = 0
    weight: int = 1
    rpm: int = 0
    tpm: int = 0
    in_flight: int = 0

    @property
    def limited(self) -> bool:
        return bool(self.rpm or self.tpm or self.in_flight)


@dataclass(frozen=True)
class ModelFacts:
    """A model with where it is served and what it costs."""

    id: int
    public_id: str
    created: int
    owned_by: str
    context_window: int | None
    max_output_tokens: int | None
    reasoning_field: str
    refuse_unpriced: bool
    deployments: tuple[Placement, ...]  # by priority
    prices: Mapping[Owner, tuple[Rates, ...]] = field(default_factory=dict)  # newest first
    strategy: str = Model.Strategy.WEIGHTED
    sticky: bool = False
    fallbacks: tuple[str, ...] = ()  # public ids
    max_attempts: int = 3
    retry_within_s: float = 60.0

    def charge_rates(self, tenant_id: int, currency: str, now: datetime) -> Rates | None:
        """The tenant's own price in its currency, else the list price in it; None: unpriced."""
        return self._in_force(("charge", tenant_id, currency), now) or self._in_force(("charge", None, currency), now)

    def cost_rates(self, provider_id: int, now: datetime) -> Rates | None:
        """What the provider charges us: its own row, else the one for any provider. Any currency."""
        return self._in_force(("cost", provider_id, ""), now) or self._in_force(("cost", None, ""), now)

    def _in_force(self, owner: Owner, now: datetime) -> Rates | None:
        for rates in self.prices.get(owner, ()):
            if rates.effective_from <= now:
                return rates
        return None


@dataclass(frozen=True)
class Catalogue:
    version: int
    models: tuple[ModelFacts, ...]  # enabled ones, by public id
    by_name: Mapping[str, ModelFacts]  # public ids and aliases

    def model_for(self, caller: Caller, name: str) -> ModelFacts | None:
        """By public id or alias. A model that the key may not call does not exist for it."""
        facts = self.by_name.get(name)
        return facts if facts is not None and caller.may_call(facts.public_id) else None


def load_catalogue() -> Catalogue:
    with transaction.atomic():
        # The version first: rows that change after it make the next admission "stale", never the other way round.
        version = CatalogueVersion.objects.values_list("version", flat=True).get()
        placements: dict[int, list[Placement]] = defaultdict(list)
        rows = Deployment.objects.filter(enabled=True, provider__enabled=True).select_related("provider", "model")
        for deployment in rows.order_by("priority", "id"):
            placements[deployment.model_id].append(_placement(deployment))
        prices: dict[int, dict[Owner, list[Rates]]] = defaultdict(lambda: defaultdict(list))
        for price in Price.objects.order_by("-effective_from", "-id"):
            owner: Owner = (
                ("charge", price.tenant_id, price.currency)
                if price.side == Price.Side.CHARGE
                else ("cost", price.provider_id, "")
            )
            prices[price.model_id][owner].append(rates_of(price))
        models = tuple(
            _facts(model, placements[model.pk], prices[model.pk])
            for model in Model.objects.filter(enabled=True).order_by("public_id")
        )
        aliases = dict(Model.objects.filter(enabled=True).values_list("public_id", "aliases"))
    by_name = {alias: facts for facts in models for alias in aliases[facts.public_id]}
    by_name.update((facts.public_id, facts) for facts in models)  # a public id wins over another's alias
    return Catalogue(version=version, models=models, by_name=by_name)


def rates_of(price: Price) -> Rates:
    """Fill the classes that are left empty: cached input and cache write as input, reasoning as output."""
    return Rates(
        price_id=price.pk,
        currency=price.currency,
        effective_from=price.effective_from,
        input=price.input,
        cached_input=price.input if price.cached_input is None else price.cached_input,
        cache_write=price.input if price.cache_write is None else price.cache_write,
        output=price.output,
        reasoning=price.output if price.reasoning is None else price.reasoning,
        request=price.request,
        used=price.first_used_at is not None,
    )


def _placement(deployment: Deployment) -> Placement:
    return Placement(
        target=_target(deployment),
        priority=deployment.priority,
        weight=deployment.weight,
        rpm=deployment.rpm or 0,
        tpm=deployment.tpm or 0,
        in_flight=deployment.max_in_flight or 0,
    )


def _target(deployment: Deployment) -> Target:
    provider, model = deployment.provider, deployment.model
    return Target(
        deployment_id=deployment.pk,
        provider_id=provider.pk,
        protocol=provider.protocol,
        base_url=provider.base_url,
        credential=provider.credential,
        upstream_model=deployment.upstream_model,
        connect_timeout_s=model.connect_timeout_s or provider.connect_timeout_s,
        first_byte_timeout_s=model.first_byte_timeout_s or provider.first_byte_timeout_s,
        read_timeout_s=model.read_timeout_s or provider.read_timeout_s,
        total_timeout_s=model.total_timeout_s or provider.total_timeout_s,
        api_version=provider.api_version,
        context_window=model.context_window,
        provider=provider.name,
    )


def _facts(model: Model, placements: list[Placement], prices: Mapping[Owner, list[Rates]]) -> ModelFacts:
    return ModelFacts(
        id=model.pk,
        public_id=model.public_id,
        created=int(model.created_at.timestamp()),
        owned_by=model.owned_by,
        context_window=model.context_window,
        max_output_tokens=model.max_output_tokens,
        reasoning_field=model.reasoning_field,
        refuse_unpriced=model.refuse_unpriced,
        deployments=tuple(placements),
        prices={owner: tuple(rows) for owner, rows in prices.items()},
        strategy=model.strategy,
        sticky=model.sticky,
        fallbacks=tuple(model.fallbacks),
        max_attempts=model.max_attempts,
        retry_within_s=model.retry_within_s,
    )
