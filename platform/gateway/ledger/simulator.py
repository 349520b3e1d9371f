"""Would this key be allowed so many tokens of this model, now or at another time? Reads, and writes nothing.

The same rules, claims and arithmetic as admission; the counters as they are. A window that has no counter, and a time
that has passed, are answered from the ledger (`ledger_limit_facts`), which is the truth that counters start from.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db import connection

from gateway.catalogue.pricing import Rates, hold
from gateway.catalogue.snapshot import ModelFacts, load_catalogue
from gateway.ledger.decisions import Decision, unpack
from gateway.ledger.explanation import Step, steps_of
from gateway.limits.claims import Claim, Need, Unbounded, affordable_output, applicable, claims_for
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


@dataclass(frozen=True, slots=True)
class Simulation:
    """The answer. `obstacle` is what would refuse it before any limit is looked at."""

    allowed: bool
    obstacle: str
    key: APIKey
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
            tight = [step for step in self.steps if step.verdict == "refused"]
            return "No. It does not fit into " + ", ".join(f"{step.kind} of {step.subject}" for step in tight) + "."
        return "Yes. It fits into every limit." if self.steps else "Yes. No limit watches it."


def simulate(
    *, key: APIKey, model: str, input_tokens: int, output_tokens: int, at: datetime, now: datetime
) -> Simulation:
    """`model` is an id or an alias. The tokens stand for the expected and for the worst case alike."""
    caller = load_callers([key.public_id])[key.public_id]
    facts = load_catalogue().by_name.get(model)
    rates = facts.charge_rates(caller.tenant_id, caller.currency, at) if facts else None
    obstacle = _obstacle(caller, facts, rates, model, at)
    if obstacle or facts is None:
        charge = hold(rates, input_tokens, output_tokens) if rates else None
        return Simulation(False, obstacle, key, model, input_tokens, output_tokens, at, charge, caller.currency)
    rules = applicable((*load_rules(caller.tenant_id, caller.key_id), *load_model_rules()), facts.id, caller.currency)
    need = Need(input_tokens, output_tokens, input_tokens, output_tokens)
    charge = hold(rates, input_tokens, output_tokens) if rates else None
    try:
        claims = claims_for(rules, need=need, rates=rates, zone=caller.zone, now=at)
    except Unbounded as exc:
        text = f"A {exc.rule.metric} limit watches it, and {exc.reason}."
        return Simulation(False, text, key, model, input_tokens, output_tokens, at, None, caller.currency)
    decisions = _decide(claims, at, now)
    allowed = all(decision.verdict != "refused" for decision in decisions)
    lowered = None if allowed else _lowered({rule.id: rule for rule in rules}, decisions, need, rates)
    return Simulation(
        allowed=allowed or lowered is not None,
        obstacle="",
        key=key,
        model=facts.public_id,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        at=at,
        charge=charge,
        currency=caller.currency,
        steps=steps_of(decisions, caller.zone),
        lowered_to=lowered,
    )


def _obstacle(caller: Caller, facts: ModelFacts | None, rates: Rates | None, model: str, at: datetime) -> str:
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
    return ""


def _decide(claims: list[Claim], at: datetime, now: datetime) -> list[Decision]:
    """Counters for this and future windows; for what has passed the ledger up to that moment."""
    taken: dict[int, tuple[int, int]] = {}
    with connection.cursor() as cursor:
        if at >= now:
            cursor.execute(_COUNTERS, {"claims": [[*claim, 0] for claim in claims], "now": at})
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
