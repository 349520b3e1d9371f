"""What the desk is asked to do, as plain dicts for its SQL (`ledger_item` in migrations/0003_counters.sql). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from gateway.catalogue.pricing import Rates, hold, rate
from gateway.limits.claims import Claim
from gateway.upstreams.base import Usage
from tenants.facts import Caller

Item = dict[str, Any]
MAX_OUTCOME = 32
NO_USE = Usage()


class Gate(NamedTuple):
    """A deployment that may serve, with its own limits. 0: not limited."""

    deployment: int
    provider: int
    rpm: int = 0
    tpm: int = 0
    in_flight: int = 0


@dataclass(slots=True)
class Order:
    """One request as it is admitted: whose, for what, at which prices. Settlement uses exactly these, but for what
    the pipeline replaces if another deployment or model serves: both rates, deployment, provider and served_model.
    """

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
    hold_rates: Rates | None = None  # what is held: per class the dearest of all that may serve; None: charge_rates
    other_rates: Sequence[Rates] = ()  # of the others that may serve: these prices, too, may no longer be changed
    served_model: str = ""  # public id, if it is not `model`
    candidates: list[Gate] = field(default_factory=list)  # best first; empty: no deployment is limited
    admitted_state: list[list[float]] | None = None  # what it was decided on (`ledger_decisions`), for headers
    _facts: Item = field(default_factory=dict)
    _moves: int = 0

    @property
    def gated(self) -> bool:
        """It came, or may have come, through a deployment's own limits: further attempts have to move."""
        return "gated" in self._facts

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
        if self.candidates:
            self._facts["gated"] = True
        item |= self._facts
        item["op"] = "a"
        item["timezone"] = caller.timezone
        item["client_request_id"] = self.client_request_id
        item["end_user"] = self.end_user
        item["input_tokens"] = self.input_tokens
        item["output_tokens"] = self.output_tokens
        dearest = self.hold_rates or charge
        item["amount"] = hold(dearest, self.input_tokens, self.output_tokens) if dearest else 0
        if self.candidates:
            item["candidates"] = [list(gate) for gate in self.candidates]
        if self.lowered is not None:
            item["lowered"] = self.lowered
        if self.served_model:
            item["served_model"] = self.served_model
        if fresh := self._used_first():
            item["first_use"] = fresh
        return item

    def _used_first(self) -> list[int]:
        """Prices that this request may be the first to use: from then on they may no longer be changed."""
        used = (self.charge_rates, self.cost_rates, *self.other_rates)
        return [rates.price_id for rates in used if rates is not None and not rates.used]

    def move(self, candidates: Sequence[Gate]) -> Item:
        """A further attempt at one of these, counted once however often it is sent."""
        self._moves += 1
        self._facts["gated"] = True
        return {
            **self._facts,
            "op": "m",
            "move": self._moves,
            "candidates": [list(gate) for gate in candidates],
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
        }

    def settlement(self, ending: Ending) -> Item:
        usage, charge, cost = ending.usage, self.charge_rates, self.cost_rates
        amounts, lines = self._rated(ending)
        item = {
            **self._facts,
            **amounts,
            "op": "s",
            "deployment_id": self.deployment_id,
            "provider_id": self.provider_id,
            "charge_price_id": charge.price_id if charge else None,
            "cost_price_id": cost.price_id if cost else None,
            "cost_currency": cost.currency if cost else "",
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
        if self.served_model:
            item["served_model"] = self.served_model
        if ending.attempts:
            item["attempts"] = [attempt.row() for attempt in ending.attempts]
            if ending.status == "completed" or usage.total:
                # What the last one used is what the record says, to the last nano-unit.
                said = {name: item[name] for name in ("cost", "cost_currency", "cost_price_id")}
                item["attempts"][-1] |= {"served": True, **said, **_counted(usage)}
        return item

    def _rated(self, ending: Ending) -> tuple[dict[str, int | None], list[list[str | int]]]:
        """Both amounts, and the class lines that they are the sums of. A failed request costs nothing, and neither
        does one whose client left while no provider had it."""
        lines: list[list[str | int]] = []
        if ending.status == "failed" or (ending.status == "interrupted" and not ending.usage.total):
            return {"charge": 0, "cost": 0}, lines
        amounts: dict[str, int | None] = {"charge": None, "cost": None}
        units = _units(ending.usage)
        for side, rates in (("charge", self.charge_rates), ("cost", self.cost_rates)):
            if rates is not None:
                amounts[side], rows = rate(rates, units)
                lines += [[side, name, count, str(price), str(amount)] for name, count, price, amount in rows]
        return amounts, lines

    def release(self) -> Item:
        return {**self._facts, "op": "r"}


@dataclass(slots=True)  # not frozen: that is a microsecond more, of each request
class Attempt:
    """One call of a provider. All milliseconds are since the order's admission."""

    number: int  # from 1
    deployment_id: int
    provider_id: int
    model: str  # public id of the model that was called
    started_ms: int
    first_byte_ms: int | None
    ended_ms: int
    outcome: str  # ok | connect | timeout | status_NNN | broken | cut | client_left | …
    http_status: int = 0  # 0: no answer
    usage: Usage = NO_USE
    cost_rates: Rates | None = None

    def row(self) -> Item:
        """As the desk's SQL reads it. What reported no use costs nothing, with or without a price."""
        rates = self.cost_rates
        cost = 0 if not self.usage.total else rate(rates, _units(self.usage))[0] if rates else None
        return {
            "number": self.number,
            "model": self.model,
            "deployment_id": self.deployment_id,
            "provider_id": self.provider_id,
            "started_ms": self.started_ms,
            "first_byte_ms": self.first_byte_ms,
            "ended_ms": self.ended_ms,
            "outcome": self.outcome[:MAX_OUTCOME],
            "http_status": self.http_status,
            "served": False,
            "cost": cost,
            "cost_currency": rates.currency if rates else "",
            "cost_price_id": rates.price_id if rates else None,
            **_counted(self.usage),
        }


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
    # In order, the last included, when there were several or the one failed. Empty: the record itself is the attempt.
    attempts: tuple[Attempt, ...] = ()


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


def _units(usage: Usage) -> dict[str, int]:
    """By the names of a price's classes."""
    return {
        "input": usage.input_tokens,
        "cached_input": usage.cached_input_tokens,
        "cache_write": usage.cache_write_tokens,
        "output": usage.output_tokens,
        "reasoning": usage.reasoning_tokens,
        "request": 1,
    }


def _counted(usage: Usage) -> Item:
    """By the names of an attempt's columns."""
    return {
        "input_tokens": usage.input_tokens,
        "cached_input_tokens": usage.cached_input_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "output_tokens": usage.output_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "estimated": usage.estimated,
    }
