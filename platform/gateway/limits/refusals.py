"""What a client is told when a limit says no: OpenAI's wording with the numbers it was decided on. Pure.

States come from the desk: one dict per claim with {rule, kind, measure, amount, ask, enforce, starts, ends, used,
held, taken, fits, wait_ms, reset_ms}. Amounts of spend are nano-units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from gateway.catalogue.pricing import format_amount
from gateway.errors import GatewayError, InvalidRequest, PermissionDenied, RateLimited, Unavailable
from gateway.limits.claims import Unbounded
from gateway.limits.durations import go_duration, retry_headers
from gateway.limits.facts import Rule
from gateway.limits.rate_headers import of_states

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
IN_FLIGHT_WAIT_MS = 1_000  # nobody knows when an answer ends
FOREVER = float("inf")
REDUCE = "The input or output tokens must be reduced in order to run successfully."
NO_RETRY = {"x-should-retry": "false"}


class QuotaExceeded(GatewayError):
    """Money, prepaid credit or a budget is used up; waiting does not help soon."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


def at_capacity(model: str, wait_ms: int | None) -> Unavailable:
    """Every deployment of a model has taken what it may: none of the tenant's doing."""
    headers = retry_headers(IN_FLIGHT_WAIT_MS if wait_ms is None else wait_ms)
    error = Unavailable(f"The model `{model}` is at its capacity at the moment. Please try again.")
    error.headers |= headers
    return error


def too_large_anywhere(model: str, most: int, asked: int) -> RateLimited:
    """More tokens than any deployment takes in a minute: it will not fit later either."""
    text = f"Request too large for {model} on tokens per min (TPM): Limit {most}, Requested {asked}. {REDUCE}"
    return RateLimited(text, type="tokens", headers=dict(NO_RETRY))


def refusal(
    states: Sequence[State], rules: Mapping[int, Rule], *, model: str, tenant: str, zone: ZoneInfo
) -> GatewayError:
    """The error for the limit that takes longest to give way: who waits for that one fits into all of them."""
    failing = [state for state in states if state["enforce"] and not state["fits"]]
    state = max(failing, key=_patience)
    rule = rules[state["rule"]]
    if state["measure"] == "s":
        error = _quota(state, rule, model, zone)
    elif state["ask"] > state["amount"]:
        error = _too_large(state, model, tenant)
    else:
        error = _rate(state, model, tenant)
    error.headers |= of_states(states, rules)
    return error


def _rate(state: State, model: str, tenant: str) -> GatewayError:
    wait = _wait_ms(state)
    return RateLimited(
        f"Rate limit reached {_head(state, model, tenant)}: Limit {state['amount']}, Used {state['taken']}, "
        f"Requested {state['ask']}. Please try again in {go_duration(wait)}.",
        type=_type(state),
        headers=retry_headers(wait),
    )


def _too_large(state: State, model: str, tenant: str) -> GatewayError:
    head = _head(state, model, tenant)
    if _type(state) == "requests":
        text = (
            f"Rate limit reached {head}: Limit {state['amount']}, Used {state['taken']}, Requested {state['ask']}. "
        )
        text += "No request is allowed."
    else:
        text = f"Request too large {head}: Limit {state['amount']}, Requested {state['ask']}. "
        text += REDUCE
    return RateLimited(text, type=_type(state), headers=dict(NO_RETRY))


def _head(state: State, model: str, tenant: str) -> str:
    return f"for {model} in organization {tenant} on {NAMES[state['measure'], state['kind']]}"


def _type(state: State) -> str:
    return "tokens" if state["measure"] in "iob" else "requests"


def _quota(state: State, rule: Rule, model: str, zone: ZoneInfo) -> GatewayError:
    budget = "prepaid credit" if rule.per == "total" else f"budget per {rule.per.replace('_', ' ')}"
    if rule.shared:  # what others have spent is nobody's business
        budget, numbers = f"{budget} of {model} for all who use it", f"{_money(state['ask'], rule)} needed"
    else:
        owner = "tenant" if rule.scope == "plan" else rule.scope
        budget += f" of this {owner}" + (f" on {model}" if rule.model_id is not None else "")
        numbers = (
            f"limit {_money(state['amount'], rule)}, spent {_money(state['used'], rule)}, held by running requests "
            f"{_money(state['held'], rule)}, needed {_money(state['ask'], rule)}"
        )
    return QuotaExceeded(
        f"You exceeded your current quota: the {budget} does not cover this request ({numbers}). "
        + _ending(state, zone),
        headers=dict(NO_RETRY),
    )


def _money(nano: int, rule: Rule) -> str:
    return f"{format_amount(int(nano), 2)} {rule.currency}"


def _ending(state: State, zone: ZoneInfo) -> str:
    if not state["ends"]:
        return "It does not reset; please ask your administrator to top it up."
    end = datetime.fromisoformat(state["ends"]).astimezone(zone)
    return f"It resets at {end:%Y-%m-%d %H:%M} ({zone.key})."


def unbounded(exc: Unbounded, *, model: str) -> GatewayError:
    """A request that a spend limit or a hard limit cannot be sure of, and what to do about it."""
    rule = exc.rule
    what = f"{rule.mode} {rule.metric} limit" if rule.hold != "hard" else f"hard {rule.metric} limit"
    if exc.lacks == "price":
        return PermissionDenied(
            f"The model `{model}` has no price in {rule.currency} yet, so it cannot be used under a spend limit. "
            "Please ask your administrator to set one.",
            code="model_not_priced",
            param="model",
        )
    if exc.lacks == "output":
        return InvalidRequest(
            f"This request to {model} has no bound on its output, which a {what} needs. "
            "Please set 'max_completion_tokens'.",
            code="unbounded_request",
            param="max_completion_tokens",
        )
    return InvalidRequest(
        f"This request to {model} has parts (images, audio or files) whose tokens cannot be bounded beforehand, "
        f"which a {what} needs. Please send text only, or ask your administrator for an `expected` hold.",
        code="unbounded_request",
        param="messages",
    )


def _wait_ms(state: State) -> int:
    if state["kind"] == "f":
        return IN_FLIGHT_WAIT_MS
    return max(1, int(state["wait_ms"] or 61_000))


def _patience(state: State) -> float:
    if state["measure"] == "s" or state["ask"] > state["amount"]:
        return FOREVER
    return _wait_ms(state)
