"""The rules that watch a caller, as immutable facts for the request path. Read once per version of key and tenant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from zoneinfo import ZoneInfo

from django.db.models import Q

from gateway.limits.models import LimitRule
from gateway.limits.windows import Window, window_at

UTC_ZONE = ZoneInfo("UTC")


@dataclass(frozen=True, slots=True)
class Rule:
    """A limit as a request meets it. Amounts of spend are nano-units."""

    id: int
    owner_id: int  # the tenant for a plan's rule, whose row many tenants share; else 0
    scope: str  # plan | tenant | key | model, for texts
    model_id: int | None  # None: all models
    metric: str
    per: str
    tokens: str
    amount: int
    raised_amount: int | None
    raised_until: datetime | None
    credits: tuple[tuple[int, datetime | None], ...]  # (amount, expires_at) of a prepaid limit
    currency: str
    mode: str
    hold: str
    on_shortage: str
    floor: int
    fiscal_day: int
    kind: str = field(init=False)  # how its row counts: c(alendar), m(inute), in f(light)
    measure: str = field(init=False)  # q(uantity), i(nput), o(utput), b(oth), s(pend), in f(light)

    def __post_init__(self) -> None:
        kind = "f" if self.metric == "in_flight" else "m" if self.per == "minute" else "c"
        measures = {"requests": "q", "spend": "s", "in_flight": "f", "tokens": self.tokens[:1]}
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "measure", measures[self.metric])

    @property
    def guesses(self) -> bool:
        """Holds what is expected, which is to be learned."""
        return self.hold == "expected" and self.metric in ("tokens", "spend")

    @property
    def shared(self) -> bool:
        """A model's own limit for everybody: what it has counted is no tenant's to see."""
        return self.scope == "model"

    @property
    def shown_in_headers(self) -> bool:
        return self.mode == "enforce" and self.metric in ("requests", "tokens") and not self.shared

    def window_at(self, now: datetime, zone: ZoneInfo) -> Window:
        """In the caller's zone; what all tenants share is counted in one window for all, UTC's."""
        mine = UTC_ZONE if self.scope == "model" else zone
        return window_at(self.per, now, mine, fiscal_day=self.fiscal_day)

    def amount_at(self, now: datetime) -> int:
        """What is allowed now: the raised amount until its end, and credit that has not expired."""
        if self.raised_until is None and not self.credits:
            return self.amount
        raised = self.raised_amount is not None and self.raised_until is not None and now < self.raised_until
        base = self.raised_amount if raised and self.raised_amount is not None else self.amount
        return base + sum(amount for amount, end in self.credits if end is None or now < end)


def load_rules(tenant_id: int, key_id: int) -> tuple[Rule, ...]:
    """The tenant's, its key's and its plan's rules. The tenant's own replaces its plan's of the same kind."""
    rows = LimitRule.objects.filter(
        Q(tenant_id=tenant_id) | Q(key_id=key_id) | Q(plan__memberships__tenant_id=tenant_id), enabled=True
    ).prefetch_related("credits")
    own = {_kind(rule) for rule in rows if rule.tenant_id is not None}
    return facts_of((rule for rule in rows if rule.plan_id is None or _kind(rule) not in own), tenant_id)


def load_model_rules() -> tuple[Rule, ...]:
    """Rules on a model for everybody."""
    return facts_of(LimitRule.objects.filter(plan=None, tenant=None, key=None, enabled=True), 0)


def _kind(rule: LimitRule) -> tuple[str, str, str, int | None]:
    return rule.metric, rule.per, rule.tokens, rule.model_id


def facts_of(rows: Iterable[LimitRule], tenant_id: int) -> tuple[Rule, ...]:
    return tuple(
        Rule(
            id=rule.pk,
            owner_id=tenant_id if rule.plan_id is not None else 0,
            scope="plan" if rule.plan_id else "tenant" if rule.tenant_id else "key" if rule.key_id else "model",
            model_id=rule.model_id,
            metric=rule.metric,
            per=rule.per,
            tokens=rule.tokens,
            amount=rule.amount,
            raised_amount=rule.raised_amount,
            raised_until=rule.raised_until,
            credits=tuple(
                (c.amount - c.expired_amount, None if c.closed_at else c.expires_at) for c in rule.credits.all()
            ),
            currency=rule.currency,
            mode=rule.mode,
            hold=rule.hold,
            on_shortage=rule.on_shortage,
            floor=rule.floor,
            fiscal_day=rule.fiscal_day,
        )
        for rule in sorted(rows, key=lambda rule: rule.pk)
    )
