"""Limits as one would explain them to a child: a list of requests, added up anew for every question."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

MINUTE = 61  # seconds: the second of now, and the sixty before it


@dataclass
class Limit:
    id: int
    metric: str  # requests | tokens | in_flight | spend
    per: str
    tokens: str
    amount: int
    key_id: int | None  # None: everybody's here
    tenant_id: int | None


@dataclass
class Request:
    id: UUID
    tenant_id: int
    key_id: int
    started: int  # the second
    asked: dict[int, int]  # by limit
    state: str = "held"  # held | ended | swept
    used: dict[str, int] = field(default_factory=dict)  # requests, input, output, spend

    def counts(self, limit: Limit) -> int:
        if self.state == "held":
            return self.asked[limit.id]
        if limit.metric == "tokens":
            return sum(self.used[side] for side in ("input", "output") if limit.tokens in (side, "both"))
        return self.used.get(limit.metric, 0)


class SlowModel:
    def __init__(self, limits: list[Limit]) -> None:
        self.limits = limits
        self.requests: dict[UUID, Request] = {}

    def watching(self, tenant_id: int, key_id: int) -> list[Limit]:
        return [
            limit for limit in self.limits if limit.key_id in (None, key_id) and limit.tenant_id in (None, tenant_id)
        ]

    def taken(self, limit: Limit, second: int) -> int:
        return sum(
            request.counts(limit)
            for request in self.requests.values()
            if limit in self.watching(request.tenant_id, request.key_id)
            if limit.per != "minute" or request.started > second - MINUTE
        )

    def wait(self, limit: Limit, second: int, ask: int) -> int | None:
        """How many seconds from the beginning of this one until it fits, if nobody else takes anything."""
        if limit.per != "minute" or ask > limit.amount:
            return None
        return next(n for n in range(MINUTE + 1) if self.taken(limit, second + n) + ask <= limit.amount)

    def admit(self, request: Request) -> dict[int, tuple[int, int | None]]:
        """What refuses it: {limit: (taken, wait)}; if nothing does, it is held."""
        refusing = {}
        for limit in self.watching(request.tenant_id, request.key_id):
            taken, ask = self.taken(limit, request.started), request.asked[limit.id]
            if taken + ask > limit.amount:
                refusing[limit.id] = taken, self.wait(limit, request.started, ask)
        if not refusing:
            self.requests[request.id] = request
        return refusing
