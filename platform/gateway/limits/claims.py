"""From rules to claims: what a request asks of which window. Pure; the desk's SQL decides (ledger migrations)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo

from gateway.catalogue.pricing import Rates, hold
from gateway.limits.facts import Rule

REASONS = {
    "input": "it has parts whose tokens cannot be bounded beforehand",
    "output": "its output has no bound",
    "price": "it has no price",
}


class Claim(NamedTuple):
    """What a request asks of one limit, in numbers: a row of `ledger_item.claims` (ledger migrations, 0009)."""

    rule: int
    owner: int
    kind: int  # of Rule.kind and measure the ascii codes
    measure: int
    enforce: int
    starts: int  # epoch seconds
    ends: int  # -1: never
    amount: int
    ask: int
    everybody: int  # 1: a model's own limit, whose row all tenants share


class Need(NamedTuple):
    """What a request may use: the expected and the worst case (accounting.md 11). None: without a bound."""

    input_expected: int
    output_expected: int
    input_worst: int | None
    output_worst: int | None

    def tokens(self, *, hard: bool) -> tuple[int, int] | None:
        """(input, output); None if the worst case has no bound."""
        if not hard:
            return self.input_expected, self.output_expected
        if self.input_worst is None or self.output_worst is None:
            return None
        return self.input_worst, self.output_worst


@dataclass(frozen=True, slots=True)
class Unbounded(Exception):
    """A hard limit and a request whose worst case cannot be bounded, or that has no price."""

    rule: Rule
    lacks: str  # input | output | price
    need: Need

    @property
    def reason(self) -> str:
        return REASONS[self.lacks]


def applicable(rules: Iterable[Rule], model_id: int, currency: str) -> list[Rule]:
    """Those that watch this model; a spend limit counts only what is charged in its currency."""
    return [
        rule
        for rule in rules
        if rule.model_id in (None, model_id) and (rule.metric != "spend" or rule.currency == currency)
    ]


def claims_for(
    rules: Iterable[Rule], *, need: Need, rates: Rates | None, zone: ZoneInfo, now: datetime
) -> list[Claim]:
    """One claim per rule. Raises Unbounded."""
    return [_claim(rule, need, rates, zone, now) for rule in rules]


def _claim(rule: Rule, need: Need, rates: Rates | None, zone: ZoneInfo, now: datetime) -> Claim:
    amount = rule.amount_at(now)
    return make_claim(rule, zone, now, amount, _ask(rule, amount, need, rates))


def make_claim(rule: Rule, zone: ZoneInfo, now: datetime, amount: int, ask: int = 0) -> Claim:
    """Which window, at which amount."""
    window = rule.window_at(now, zone)
    return Claim(
        rule.id,
        rule.owner_id,
        ord(rule.kind),
        ord(rule.measure),
        int(rule.mode == "enforce"),
        window.starts,
        window.ends,
        amount,
        ask,
        int(rule.shared),
    )


def _ask(rule: Rule, amount: int, need: Need, rates: Rates | None) -> int:
    if rule.measure in "qf":
        return 1
    tokens = need.tokens(hard=rule.hold == "hard")
    if rule.mode != "enforce":  # it refuses nobody: what it cannot know is booked at settlement
        tokens = tokens or need.tokens(hard=False)
    if tokens is None:
        raise Unbounded(rule, "input" if need.input_worst is None else "output", need)
    if rates is None and rule.measure == "s":
        if rule.mode == "enforce":
            raise Unbounded(rule, "price", need)
        return 0
    ask = units(rule, *tokens, rates)
    if ask <= amount or rule.hold == "hard" or rule.on_shortage == "fit":
        return ask
    # A guess of the output may be too high: by itself it must not exceed a limit that the true use may fit into.
    return min(ask, max(amount, units(rule, tokens[0], min(1, tokens[1]), rates)))


def units(rule: Rule, input_tokens: int, output_tokens: int, rates: Rates | None) -> int:
    """So many tokens as the limit counts them; of spend: what would be held."""
    if rule.measure == "s":
        return hold(rates, input_tokens, output_tokens) if rates is not None else 0
    if rule.measure in "qf":
        return 1
    return (rule.measure != "o") * input_tokens + (rule.measure != "i") * output_tokens


def affordable_output(rule: Rule, available: int, *, need: Need, rates: Rates | None, choices: int) -> int:
    """How many completion tokens a choice may have so that the claim of `rule` fits into `available` (0: none)."""
    tokens = need.tokens(hard=rule.hold == "hard")
    if tokens is None or rule.measure not in ("o", "b", "s"):
        return 0
    input_tokens, output_tokens = tokens
    if rule.measure != "s":
        left = available - (input_tokens if rule.measure == "b" else 0)
        return max(0, left) // choices
    if rates is None:
        return 0
    low, high = 0, output_tokens // choices
    while low < high:  # the dearest price and the rounding are hold()'s own affair
        middle = (low + high + 1) // 2
        if hold(rates, input_tokens, middle * choices) <= available:
            low = middle
        else:
            high = middle - 1
    return low if hold(rates, input_tokens, low * choices) <= available else 0
