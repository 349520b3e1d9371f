"""What a client is told when a limit says no: OpenAI's wording with the numbers it was decided on. Pure.

States come from the desk: one dict per claim with {rule, kind, measure, amount, ask, enforce, starts, ends, used,
held, taken, fits, wait_ms}. Amounts of spend are nano-units.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from gateway.catalogue.pricing import format_amount
from gateway.errors import GatewayError, InvalidRequest, RateLimited
from gateway.limits.claims import Unbounded
from gateway.limits.facts import Rule

State = dict[str, Any]
NAMES = {
    ("q", "m"): "requests per min (RPM)",
    ("q", "c"): "requests per day (RPD)",
    ("b", "m"): "tokens per min (TPM)",
    ("b", "c"): "tokens per day (TPD)",
    ("i", "m"): "input tokens per min (TPM)",
    ("i", "c"): "input tokens per day (TPD)",
    ("o", "m"): "output tokens per min (TPM)",
    ("o", "c"): "output tokens per day (TPD)",
    ("f", "f"): "requests in flight",
}
IN_FLIGHT_WAIT_MS = 1_000


class QuotaExceeded(GatewayError):
    """Money, prepaid credit or a budget is used up; waiting does not help soon."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


def refusal(
    states: list[State], rules: Mapping[int, Rule], *, model: str, tenant: str, now: datetime
) -> GatewayError:
    """The error for the tightest limit: the one that takes longest to give way."""
    failing = [state for state in states if state["enforce"] and not state["fits"]]
    state = max(failing, key=lambda s: _patience(s, now))
    rule = rules[state["rule"]]
    if state["measure"] == "s":
        return _quota(state, rule)
    name = NAMES[state["measure"], state["kind"]]
    kind = "tokens" if state["measure"] in "iob" else "requests"
    head = f"for {model} in organization {tenant} on {name}"
    if state["ask"] > state["amount"]:
        return RateLimited(
            f"Request too large {head}: Limit {state['amount']}, Requested {state['ask']}. "
            "The input or output tokens must be reduced in order to run successfully.",
            type=kind,
            headers={"x-should-retry": "false"},
        )
    wait = _wait_ms(state, now)
    return RateLimited(
        f"Rate limit reached {head}: Limit {state['amount']}, Used {state['taken']}, Requested {state['ask']}. "
        f"Please try again in {go_duration(wait)}.",
        type=kind,
        headers={"retry-after": str(-(-wait // 1000)), "retry-after-ms": str(wait)},
    )


def _quota(state: State, rule: Rule) -> GatewayError:
    budget = "prepaid credit" if rule.per == "total" else f"budget per {rule.per.replace('_', ' ')}"
    numbers = (
        f"limit {format_amount(int(state['amount']), 2)} {rule.currency}, "
        f"spent {format_amount(int(state['used']), 2)}, held by running requests {format_amount(int(state['held']), 2)}, "
        f"this request needs {format_amount(int(state['ask']), 2)}"
    )
    end = f" It resets at {state['ends']}." if state["ends"] else ""
    return QuotaExceeded(
        f"You exceeded your current quota: the {budget} of this {rule.scope} does not cover the request ({numbers}).{end}",
        headers={"x-should-retry": "false"},
    )


def unbounded(exc: Unbounded, *, model: str) -> GatewayError:
    return InvalidRequest(
        f"This request to {model} cannot be admitted under a hard {exc.rule.metric} limit: {exc.reason}. "
        "Set max_tokens, and send text only.",
        code="unbounded_request",
        param="max_tokens",
    )


def _wait_ms(state: State, now: datetime) -> int:
    if state["kind"] == "f":
        return IN_FLIGHT_WAIT_MS
    if state["kind"] == "m":
        return int(state["wait_ms"] or 61_000)
    return max(1, int((datetime.fromisoformat(state["ends"]) - now).total_seconds() * 1000) + 1)


def _patience(state: State, now: datetime) -> float:
    if state["measure"] == "s" or state["ask"] > state["amount"]:
        return float("inf")
    return _wait_ms(state, now)


def go_duration(milliseconds: int) -> str:
    """As Go writes durations, which is what OpenAI's headers have: 6ms, 8.64s, 1m0s, 23m16.298s."""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else "") + seconds


def rate_headers(states: list[list[int]], rules: Mapping[int, Rule], at: int) -> dict[str, str]:
    """OpenAI's x-ratelimit headers from the minute windows of an admitted request: [rule, amount, taken, ask, slot_at].

    The tightest of each kind. Resets is the time until the window is empty again.
    """
    headers: dict[str, str] = {}
    for name, measures in (("requests", "q"), ("tokens", "iob")):
        mine = [state for state in states if rules[state[0]].measure in measures]
        if not mine:
            continue
        rule, amount, taken, _, slot_at = min(mine, key=lambda state: state[1] - state[2])
        headers[f"x-ratelimit-limit-{name}"] = str(amount)
        headers[f"x-ratelimit-remaining-{name}"] = str(max(0, amount - taken))
        headers[f"x-ratelimit-reset-{name}"] = go_duration(max(0, (slot_at + 61 - at) * 1000) if taken else 0)
    return headers
