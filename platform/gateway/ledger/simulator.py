"""Would this key be allowed so many tokens of this model, now or at another time? Reads, and writes nothing.

The same rules, claims and arithmetic as admission; the counters as they are. A window that has no counter, and a time
that has passed, are answered from the ledger (`ledger_limit_facts`), which is the truth that counters start from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connection

from gateway.catalogue.pricing import Rates, format_amount, hold
from gateway.catalogue.snapshot import Catalogue, ModelFacts, load_catalogue
from gateway.ledger.decisions import Decision, unpack
from gateway.ledger.explanation import Step, step_json, steps_of
from gateway.limits.claims import Claim, Need, Unbounded, affordable_output, applicable, claims_for, units
from gateway.limits.facts import Rule, load_model_rules, load_rules
from tenants.facts import Caller, load_callers
from tenants.models import APIKey

# What its counter says of each claim; a claim without one has no row. Rows of one counter are summed.
_COUNTERS = """
SELECT c.rule, sum(l.used), sum(l.held), sum(CASE WHEN c.kind = ascii('m') THEN ledger_slots_sum(l.slots, l.slot_at,
        greatest(l.slot_at, floor(extract(epoch FROM %(now)s::timestamptz))::bigint)) END)
FROM ledger_claim_rows(%(claims)s::bigint[]) c
JOIN limits_limitcounter l
    ON l.rule_id = c.rule AND l.owner_id = c.owner AND l.window_start = to_timestamp(c.starts)
GROUP BY c.rule
"""
_FACTS = "SELECT COALESCE(sum(used), 0), COALESCE(sum(held), 0) FROM ledger_limit_facts(%s, %s, %s, %s)"
MINUTE = timedelta(seconds=61)
MOST_TOKENS = 1_000_000_000
EARLIEST, LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Question:
    """`model` is an id or an alias. The tokens stand for the expected and for the worst case alike."""

    model: str
    input_tokens: int  # 0 to MOST_TOKENS
    output_tokens: int
    at: datetime  # EARLIEST to LATEST
    now: datetime

    @property
    def need(self) -> Need:
        return Need(self.input_tokens, self.output_tokens, self.input_tokens, self.output_tokens)


@dataclass(frozen=True, slots=True)
class Simulation:
    """The answer. `obstacle` is what would refuse it before any limit is looked at."""

    allowed: bool
    obstacle: str
    model: str
    input_tokens: int
    output_tokens: int
    at: datetime
    charge: int | None  # what would be held, in the tenant's currency
    currency: str
    steps: tuple[Step, ...] = ()
    lowered_to: int | None = None  # limits of on_shortage: fit would lower its completion to this, and admit it

    @property
    def sentence(self) -> str:
        if self.obstacle:
            return f"No. {self.obstacle}"
        if self.lowered_to is not None:
            return f"Yes, with its completion lowered to {self.lowered_to} tokens."
        if not self.allowed:
            return f"No. It does not fit into {_names(step for step in self.steps if step.verdict == 'refused')}."
        beyond = _names(step for step in self.steps if step.beyond is not None)
        if beyond:
            return f"Yes. But if it really uses so many tokens, it uses more than {beyond} allows."
        return "Yes. It fits into every limit." if self.steps else "Yes. No limit watches it."


def _names(steps: Any) -> str:
    return ", ".join(f"{step.kind} of {step.subject}" for step in steps)


def simulate(
    *, key: APIKey, model: str, input_tokens: int, output_tokens: int, at: datetime, now: datetime
) -> Simulation:
    """For who may see everything; all facts are read anew."""
    caller = load_callers([key.public_id])[key.public_id]
    rules = (*load_rules(caller.tenant_id, caller.key_id), *load_model_rules())
    return answer(Question(model, input_tokens, output_tokens, at, now), load_catalogue(), caller, rules)


def answer(
    question: Question, catalogue: Catalogue, caller: Caller, rules: Sequence[Rule], *, hide_shared: bool = False
) -> Simulation:
    """On these facts. `hide_shared`: what others used of limits that all share is not in it."""
    facts = catalogue.by_name.get(question.model)
    at, need = question.at, question.need
    rates = facts.charge_rates(caller.tenant_id, caller.currency, at) if facts else None
    told = Simulation(
        allowed=False,
        obstacle=_obstacle(caller, facts, rates, question),
        model=facts.public_id if facts else question.model,
        input_tokens=question.input_tokens,
        output_tokens=question.output_tokens,
        at=at,
        charge=hold(rates, question.input_tokens, question.output_tokens) if rates else None,
        currency=caller.currency,
    )
    if told.obstacle or facts is None:
        return told
    watching = applicable(rules, facts.id, caller.currency)
    try:
        claims = claims_for(watching, need=need, rates=rates, zone=caller.zone, now=at)
    except Unbounded as exc:
        return replace(told, obstacle=f"A {exc.rule.metric} limit watches it, and {exc.reason}.")
    decisions = _decide(claims, at, question.now)
    allowed = all(decision.verdict != "refused" for decision in decisions)
    lowered = None if allowed else _lowered({rule.id: rule for rule in watching}, decisions, need, rates)
    wanted = {rule.id: units(rule, question.input_tokens, question.output_tokens, rates) for rule in watching}
    steps = steps_of(decisions, caller.zone, hide_shared=hide_shared)
    return replace(
        told,
        allowed=allowed or lowered is not None,
        steps=tuple(_honest(step, wanted[step.decision.rule_id]) for step in steps),
        lowered_to=lowered,
    )


def _honest(step: Step, wanted: int) -> Step:
    """A guessed hold is never larger than the limit; what was asked about may be."""
    decision = step.decision
    beyond = wanted if decision.enforce and decision.fits and decision.ask < wanted else None
    return replace(step, beyond=beyond)


def _obstacle(caller: Caller, facts: ModelFacts | None, rates: Rates | None, question: Question) -> str:
    model, at = question.model, question.at
    if not caller.key_active or (caller.key_expires_at is not None and caller.key_expires_at <= at):
        return "The key is revoked or will have expired."
    if caller.tenant_status != "active":
        return f"The tenant is {caller.tenant_status}."
    if facts is None or not caller.may_call(facts.public_id):
        return f"The model {model} does not exist, is disabled, or this key may not call it."
    if not facts.deployments:
        return f"The model {model} has no enabled deployment."
    if rates is None and facts.refuse_unpriced:
        return f"The model {model} has no price in {caller.currency} at that time."
    most = facts.max_output_tokens
    if most is not None and question.output_tokens > most:
        return f"The model {model} gives at most {most} completion tokens."
    return ""


def _decide(claims: list[Claim], at: datetime, now: datetime) -> list[Decision]:
    """Counters for this and future windows; for what has passed the ledger up to that moment."""
    taken: dict[int, tuple[int, int]] = {}
    with connection.cursor() as cursor:
        if at >= now:
            rows = [[*claim._replace(ask=0), 0] for claim in claims]
            cursor.execute(_COUNTERS, {"claims": rows, "now": at})
            for rule, used, held, minute in cursor.fetchall():
                taken[rule] = (int(minute), 0) if minute is not None else (int(used), int(held))
        for claim in claims:
            if claim.rule not in taken:
                kind = chr(claim.kind)
                starts, ends = _instant(claim.starts), _instant(claim.ends) if claim.ends >= 0 else None
                # What runs now is in flight whenever it is asked; what started since is not in a past window.
                until = at if at < now and kind != "f" else ends
                cursor.execute(_FACTS, [claim.rule, claim.owner, at - MINUTE if kind == "m" else starts, until])
                used, held = (int(value) for value in cursor.fetchone())
                taken[claim.rule] = _as_kind(kind, used, held)
    return unpack([*claim[:9], *taken[claim.rule]] for claim in claims)


def _instant(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _as_kind(kind: str, used: int, held: int) -> tuple[int, int]:
    return (used + held, 0) if kind == "m" else (0, held) if kind == "f" else (used, held)


def _lowered(rules: dict[int, Rule], decisions: list[Decision], need: Need, rates: Rates | None) -> int | None:
    """As routing.fitted: the lower cap with which it fits into every limit that refuses it."""
    cap = need.output_expected
    for decision in decisions:
        if decision.verdict != "refused":
            continue
        rule = rules[decision.rule_id]
        if rule.on_shortage != "fit":
            return None
        cap = min(cap, affordable_output(rule, decision.left, need=need, rates=rates, choices=1))
        if cap < max(1, rule.floor):
            return None
    return cap if cap < need.output_expected else None


def as_json(told: Simulation) -> dict[str, Any]:
    """For the tenant's endpoint, in the form of explanations."""
    return {
        "object": "limit.simulation",
        "allowed": told.allowed,
        "summary": told.sentence,
        "model": told.model,
        "input_tokens": told.input_tokens,
        "output_tokens": told.output_tokens,
        "max_tokens": told.lowered_to,
        "at": told.at.astimezone(UTC).isoformat(),
        "currency": told.currency,
        "held": None if told.charge is None else format_amount(told.charge, 2),
        "limits": [step_json(step) for step in told.steps],
    }
