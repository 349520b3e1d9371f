"""What the desk is asked to do, as plain dicts for its SQL (`ledger_item` in migrations/0003_counters.sql). Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from gateway.catalogue.pricing import Rates, hold, rate
from gateway.limits.claims import Claim
from gateway.upstreams.base import Usage
from tenants.facts import Caller

Item = dict[str, Any]


@dataclass(slots=True)
class Order:
    """One request as it is admitted: whose, for what, at which prices. Settlement uses exactly these."""

    request_id: UUID
    caller: Caller
    catalogue_version: int
    endpoint: str
    stream: bool
    model: str  # public id
    catalogue_model_id: int
    deployment_id: int
    provider_id: int
    input_tokens: int  # estimates, held
    output_tokens: int
    charge_rates: Rates | None
    cost_rates: Rates | None
    client_request_id: str = ""
    end_user: str = ""
    started_at: str | None = None  # the database's clock at admission, as it told us
    local_date: str | None = None
    claims: list[Claim] = field(default_factory=list)  # what it asks of which limit
    lowered: int | None = None  # the cap that a limit of `on_shortage: fit` has left
    admitted_state: list[list[float]] | None = None  # what it was decided on (`ledger_decisions`), for headers
    _facts: Item = field(default_factory=dict)

    def admission(self, shard: int = 0) -> Item:
        """`shard`: which of the lifetime counters it moves, then and when it ends (ledger.heat)."""
        caller, charge, cost = self.caller, self.charge_rates, self.cost_rates
        item = check(caller, self.catalogue_version, self.request_id)
        self._facts = {
            "request_id": item["request_id"],
            "tenant_id": caller.tenant_id,
            "key_id": caller.key_id,
            "charge_currency": caller.currency,
            "cost_currency": cost.currency if cost else "",
            "model": self.model,
            "catalogue_model_id": self.catalogue_model_id,
            "deployment_id": self.deployment_id,
            "provider_id": self.provider_id,
            "endpoint": self.endpoint,
            "stream": self.stream,
            "charge_price_id": charge.price_id if charge else None,
            "cost_price_id": cost.price_id if cost else None,
        }
        if shard:
            self._facts["shard"] = shard
        item |= self._facts
        item["op"] = "a"
        item["timezone"] = caller.timezone
        item["client_request_id"] = self.client_request_id
        item["end_user"] = self.end_user
        item["input_tokens"] = self.input_tokens
        item["output_tokens"] = self.output_tokens
        item["amount"] = hold(charge, self.input_tokens, self.output_tokens) if charge else 0
        if self.lowered is not None:
            item["lowered"] = self.lowered
        fresh = [rates.price_id for rates in (charge, cost) if rates is not None and not rates.used]
        if fresh:
            item["first_use"] = fresh
        return item

    def settlement(self, ending: Ending) -> Item:
        usage = ending.usage
        units = {
            "input": usage.input_tokens,
            "cached_input": usage.cached_input_tokens,
            "cache_write": usage.cache_write_tokens,
            "output": usage.output_tokens,
            "reasoning": usage.reasoning_tokens,
            "request": 0 if ending.status == "failed" else 1,
        }
        lines: list[list[str | int]] = []
        amounts: dict[str, int | None] = {"charge": None, "cost": None}
        if ending.status == "failed":
            amounts = {"charge": 0, "cost": 0}
        else:
            for side, rates in (("charge", self.charge_rates), ("cost", self.cost_rates)):
                if rates is not None:
                    amounts[side], rows = rate(rates, units)
                    lines += [[side, name, count, str(price), str(amount)] for name, count, price, amount in rows]
        return {
            **self._facts,
            **amounts,
            "op": "s",
            "started_at": self.started_at,
            "local_date": self.local_date,
            "status": ending.status,
            "estimated": usage.estimated,
            "http_status": ending.http_status,
            "error_code": ending.error_code,
            "first_byte_ms": ending.first_byte_ms,
            "input_tokens": usage.input_tokens,
            "cached_input_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "output_tokens": usage.output_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "lines": lines,
            "client_request_id": self.client_request_id,
            "end_user": self.end_user,
        }

    def release(self) -> Item:
        return {**self._facts, "op": "r"}


@dataclass(frozen=True, slots=True)
class EarlyRefusal:
    """A refusal before any counter was looked at, as it is kept (limits.refusals_log)."""

    reason: str
    model: str
    input_tokens: int = 0  # estimates
    output_tokens: int = 0
    decided: list[list[int]] = field(default_factory=list)  # the limit that lacked something (ledger.decisions)

    def item(self, keep: int | None) -> Item:
        """What it adds to a check. It stands for `keep` refusals."""
        facts: Item = {
            "keep": keep,
            "reason": self.reason,
            "model": self.model,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
        }
        return {**facts, "decided": self.decided} if self.decided else facts


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended (accounting.md 6)."""

    status: str  # completed | failed | interrupted
    usage: Usage
    http_status: int = 200
    error_code: str = ""
    first_byte_ms: int | None = None


def check(caller: Caller, catalogue_version: int, request_id: UUID) -> Item:
    """Are these facts still the facts? Decides as an admission does, and holds nothing."""
    return {
        "op": "c",
        "request_id": str(request_id),  # once: it is asked for a few times, and takes a microsecond
        "tenant_id": caller.tenant_id,
        "key_id": caller.key_id,
        "tenant_version": caller.tenant_version,
        "key_version": caller.key_version,
        "catalogue_version": catalogue_version,
    }
