"""OpenAI's x-ratelimit headers, from the windows of requests and tokens. Pure.

The tightest limit of each kind: the one that leaves least. Limits that only observe are not shown, since clients slow
down by these headers; neither are a model's own for everybody, in which others' use is counted. `reset` is the
time until the window is as if nothing had been used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.limits.durations import go_duration
from gateway.limits.facts import Rule

SLOT_SECONDS = 61  # a sliding minute forgets a second when 61 have passed since it began (ledger migrations, 0005)
KINDS = (("requests", "q"), ("tokens", "iob"))


@dataclass(frozen=True, slots=True)
class Standing:
    """How a window stands. `taken`: used and held."""

    rule: Rule
    amount: int
    taken: int
    reset_ms: int

    @property
    def left(self) -> int:
        return max(0, self.amount - self.taken)


def headers(standings: Iterable[Standing]) -> dict[str, str]:
    shown = [standing for standing in standings if standing.rule.shown_in_headers]
    made: dict[str, str] = {}
    for name, measures in KINDS:
        mine = [standing for standing in shown if standing.rule.measure in measures]
        if not mine:
            continue
        tightest = min(mine, key=lambda standing: (standing.left, standing.amount))
        made[f"x-ratelimit-limit-{name}"] = str(tightest.amount)
        made[f"x-ratelimit-remaining-{name}"] = str(tightest.left)
        made[f"x-ratelimit-reset-{name}"] = go_duration(tightest.reset_ms)
    return made


def of_decided(decided: Iterable[Sequence[float]], rules: Mapping[int, Rule], at: str) -> dict[str, str]:
    """After an admission: the rows that it was decided on (`ledger_decisions`), at the database's time."""
    now = datetime.fromisoformat(at).timestamp()
    standings = []
    for rule_id, _, _, _, _, _, ends, amount, ask, used, held in decided:
        rule = rules.get(int(rule_id))
        if rule is not None and rule.shown_in_headers:
            until = int(now) + SLOT_SECONDS if rule.kind == "m" else ends
            standings.append(Standing(rule, int(amount), int(used + held + ask), max(0, round((until - now) * 1000))))
    return headers(standings)


def of_states(states: Iterable[Mapping[str, Any]], rules: Mapping[int, Rule]) -> dict[str, str]:
    """After a refusal, which has taken nothing."""
    return headers(
        Standing(rules[state["rule"]], int(state["amount"]), int(state["taken"]), int(state["reset_ms"] or 0))
        for state in states
        if rules[state["rule"]].shown_in_headers
    )
