"""Why was this request admitted or refused: each limit that was looked at, in order, with the numbers of that moment.

`explain` is for the admin; with a tenant it answers for that tenant's own requests alone, and says nothing of what
others used of a limit that all share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from django.core.exceptions import ObjectDoesNotExist
from django.db import connection

from gateway.catalogue.pricing import format_amount
from gateway.ledger.decisions import Decision, unpack
from gateway.limits.claims import REASONS
from gateway.limits.models import LimitRule
from gateway.limits.refusals_log import BESIDE_LIMITS, LACKS
from gateway.limits.wording import kind_of, quantity, window_text
from tenants.models import APIKey, Tenant

# A record first: what became of it says more than how it began.
_FIND = """
SELECT 'record' AS source, tenant_id, key_id, model, started_at, input_tokens + cached_input_tokens
    + cache_write_tokens, output_tokens + reasoning_tokens, decided, status, charge, charge_currency, ''
FROM ledger_usagerecord WHERE request_id = %(id)s
UNION ALL
SELECT 'hold', tenant_id, key_id, model, started_at, input_tokens, output_tokens, decided, 'running', NULL,
    charge_currency, ''
FROM ledger_hold WHERE request_id = %(id)s
UNION ALL
SELECT 'refusal', tenant_id, key_id, model, at, input_tokens, output_tokens, decided, 'refused', NULL, '', reason
FROM limits_refusal WHERE request_id = %(id)s
"""
PRECEDENCE = ("record", "hold", "refusal")
WHY = {LACKS[lacks]: reason for lacks, reason in REASONS.items()} | BESIDE_LIMITS
# What a client is told of an id under which nothing is kept; the admin's page says the same.
NOTHING_KEPT = (
    "A request that was refused for its key or its form, or because the service was overloaded, has no decision: its "
    "answer's error says why. Of many refusals in a row of one key a few a second are kept, for 30 days."
)


@dataclass(frozen=True, slots=True)
class Step:
    """One limit that was looked at."""

    decision: Decision
    rule: LimitRule | None  # None: neither the rule nor its history is there
    removed: bool
    zone: ZoneInfo
    shared: bool = False  # others' use is in it, and the reader may not see that
    reason: str = ""  # why it could not be asked: its counter was not looked at
    beyond: int | None = None  # what it would use, where that is more than it asked and the limit allows (simulator)

    @property
    def subject(self) -> str:
        try:
            return self.rule.subject if self.rule else f"rule {self.decision.rule_id}"
        except ObjectDoesNotExist:  # its plan or model is gone, too
            return f"rule {self.decision.rule_id}"

    @property
    def kind(self) -> str:
        return kind_of(self.rule) if self.rule else "limit"

    @property
    def window(self) -> str:
        if self.rule is None:
            return ""
        return window_text(self.rule, self.decision.starts, self.decision.ends, self.zone)

    def number(self, value: int) -> str:
        return quantity(self.rule, value) if self.rule else str(value)

    @property
    def amount(self) -> str:
        return self.number(self.decision.amount)

    @property
    def used(self) -> str:
        return self._seen(self.decision.used)

    @property
    def held(self) -> str:
        return self._seen(self.decision.held)

    def _seen(self, value: int) -> str:
        return "-" if not self.decision.bounded else "shared" if self.shared else self.number(value)

    @property
    def asked(self) -> str:
        return self.number(self.decision.ask) if self.decision.bounded else "unknown"

    @property
    def verdict(self) -> str:
        return self.decision.verdict

    @property
    def sentence(self) -> str:
        decision = self.decision
        if not decision.bounded:
            return f"It cannot be sure of the request: {WHY.get(self.reason, self.reason)}."
        if self.beyond is not None:
            return (
                f"It would hold {self.asked} of {self.amount}: a guess never holds more than the limit itself. It "
                f"might use {self.number(self.beyond)}, more than the limit, which only a hard limit would refuse."
            )
        if decision.fits:
            left = "" if self.shared else f", {self.number(decision.left - decision.ask)} left after it"
            return f"It asked for {self.asked} of {self.amount}: it fits{left}."
        if decision.never:
            return f"It asked for {self.asked}, more than the limit itself, {self.amount}: it can never fit."
        short = "" if self.shared else f", {self.number(decision.ask - decision.left)} short"
        tail = "" if decision.enforce else " The limit only observes, so it was let through."
        return f"It asked for {self.asked}: it does not fit{short}.{tail}"


@dataclass(frozen=True, slots=True)
class Explanation:
    request_id: UUID
    source: str  # record | hold | refusal
    verdict: str  # admitted | refused | lowered (refused first, then admitted with a lower cap)
    tenant: Tenant
    key: APIKey
    model: str
    at: datetime
    input_tokens: int  # used; of holds and refusals: estimated
    output_tokens: int
    status: str
    charge: int | None
    currency: str
    steps: tuple[Step, ...]
    first_steps: tuple[Step, ...] = ()  # lowered: the refusal that came first
    lowered_to: int | None = None
    stands_for: int = 1
    reason: str = ""  # refused before any counter was looked at, for this

    @property
    def sentence(self) -> str:
        if self.reason:
            why = WHY.get(self.reason, f"its answer has the code {self.reason}")
            unsure = "".join(f"{step.kind} of {step.subject} cannot be sure of the request" for step in self.steps)
            return f"Refused: {unsure}: {why}." if unsure else f"Refused before limits were looked at: {why}."
        if self.verdict == "refused":
            tight = [step for step in self.steps if step.verdict == "refused"]
            names = ", ".join(f"{step.kind} of {step.subject}" for step in tight)
            return f"Refused: it did not fit into {names or 'a limit'}."
        if not self.steps:
            return "Admitted: no limit watched it."
        count = f"{len(self.steps)} limit{'s' * (len(self.steps) > 1)}"
        if self.verdict == "lowered":
            return f"Admitted with its completion capped to {self.lowered_to} tokens; {count} looked at."
        over = sum(step.verdict == "over" for step in self.steps)
        tail = f"; {over} of them only observed and would have refused it" if over else ""
        return f"Admitted: {count} looked at{tail}."


def explain(request_id: UUID, *, tenant_id: int | None = None) -> Explanation | None:
    """None: there is no such request, or it is not this tenant's. Three look-ups by primary key."""
    with connection.cursor() as cursor:
        cursor.execute(_FIND, {"id": request_id})
        found = {row[0]: row for row in cursor.fetchall() if tenant_id is None or row[1] == tenant_id}
        cursor.execute("SELECT lowered_to, stands_for FROM limits_refusal WHERE request_id = %s", [request_id])
        lowered_to, stands_for = cursor.fetchone() or (None, 1)
    source = next((name for name in PRECEDENCE if name in found), None)
    if source is None:
        return None
    _, tenant, key, model, at, tokens_in, tokens_out, rows, status, charge, currency, reason = found[source]
    owner = Tenant.objects.get(pk=tenant)
    verdict = "refused" if source == "refusal" else "lowered" if lowered_to is not None else "admitted"
    shared = tenant_id is not None
    return Explanation(
        request_id=request_id,
        source=source,
        verdict=verdict,
        tenant=owner,
        key=APIKey.objects.get(pk=key),
        model=model,
        at=at,
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        status=status,
        charge=charge,
        currency=currency or owner.currency,
        steps=steps_of(unpack(rows or []), owner.zone, hide_shared=shared, reason=reason),
        first_steps=(
            steps_of(unpack(found["refusal"][7]), owner.zone, hide_shared=shared) if verdict == "lowered" else ()
        ),
        lowered_to=lowered_to,
        stands_for=stands_for,
        reason=reason,
    )


def steps_of(
    decisions: Iterable[Decision], zone: ZoneInfo, *, hide_shared: bool = False, reason: str = ""
) -> tuple[Step, ...]:
    """With the rules as they are now, or as they last were if they are gone."""
    decisions = list(decisions)
    ids = {decision.rule_id for decision in decisions}
    related = ("plan", "tenant", "key", "model")
    rules = LimitRule.objects.select_related(*related).in_bulk(ids)
    gone = {missing: _last_known(missing) for missing in ids - set(rules)}
    steps = []
    for decision in decisions:
        rule = rules.get(decision.rule_id) or gone.get(decision.rule_id)
        step = Step(decision, rule, decision.rule_id in gone, zone, reason=reason)
        everybodys = rule is not None and not (rule.tenant_id or rule.key_id or rule.plan_id)
        steps.append(replace(step, shared=hide_shared and everybodys))
    return tuple(steps)


def _last_known(rule_id: int) -> LimitRule | None:
    row = LimitRule.history.filter(id=rule_id).order_by("-history_date").first()
    return row.instance if row is not None else None


def as_json(explanation: Explanation) -> dict[str, Any]:
    """For the tenant's endpoint. Amounts of spend are decimal strings, counts are numbers, instants ISO 8601."""
    return {
        "object": "limit.explanation",
        "request_id": f"req_{explanation.request_id.hex}",
        "verdict": explanation.verdict,
        "status": explanation.status,
        "reason": explanation.reason or None,
        "summary": explanation.sentence,
        "at": explanation.at.isoformat(),
        "key": explanation.key.public_id,
        "model": explanation.model,
        "input_tokens": explanation.input_tokens,
        "output_tokens": explanation.output_tokens,
        "max_tokens": explanation.lowered_to,
        "limits": [step_json(step) for step in explanation.steps],
        "refused_first": [step_json(step) for step in explanation.first_steps],
    }


def step_json(step: Step) -> dict[str, Any]:
    decision, rule = step.decision, step.rule
    spend = decision.measure == "s"
    unseen = step.shared or not decision.bounded

    def number(value: int) -> int | str:
        return format_amount(value, 2) if spend else value

    return {
        "limit": f"{step.kind} of {_scope(rule)}",
        "scope": _scope(rule),
        "model": rule.model.public_id if rule and rule.model else None,
        "metric": rule.metric if rule else None,
        "per": rule.per or None if rule else None,
        "currency": rule.currency or None if rule else None,
        "mode": "enforce" if decision.enforce else "observe",
        "window_start": None if decision.ends is None else decision.starts.isoformat(),
        "window_end": decision.ends.isoformat() if decision.ends else None,
        "amount": number(decision.amount),
        "used": None if unseen else number(decision.used),
        "held": None if unseen else number(decision.held),
        "asked": number(decision.ask) if decision.bounded else None,
        "verdict": decision.verdict,
        "explanation": step.sentence,
    }


def _scope(rule: LimitRule | None) -> str:
    if rule is None:
        return "limit"
    return "plan" if rule.plan_id else "tenant" if rule.tenant_id else "key" if rule.key_id else "model"
