"""Does a rule make sense? Texts for people, by field, that say what to do. Pure: forms and `apply` share them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

PERIODS: dict[str, tuple[str, ...]] = {
    "requests": ("minute", "day"),
    "tokens": ("minute", "day"),
    "in_flight": ("",),
    "spend": ("day", "week", "month", "fiscal_month", "total"),
}


def tidied(rule: Any) -> None:
    """Fields that mean nothing for a metric are put to what they are when nobody sets them."""
    if rule.metric == "in_flight":
        rule.per = ""
    if rule.metric != "tokens":
        rule.tokens = "both"
    if rule.metric != "spend":
        rule.currency = ""
    if rule.per != "fiscal_month":
        rule.fiscal_day = 1
    owner = rule.tenant or (rule.key.tenant if rule.key else None)
    if rule.metric == "spend" and owner is not None and not rule.currency:
        rule.currency = owner.currency
    rule.thresholds = sorted(set(rule.thresholds))


def misplaced(stated: Collection[str], rule: Any) -> dict[str, str]:
    """By field: what was stated of a limit and would be dropped without a word."""
    found: dict[str, str] = {}
    if rule.metric != "tokens" and "tokens" in stated:
        found["tokens"] = "Only a limit of tokens says which tokens it counts: leave it out."
    if rule.metric != "spend" and "currency" in stated:
        found["currency"] = "Only a limit of spend is in a currency: leave it out."
    if rule.per != "fiscal_month" and "fiscal_day" in stated:
        found["fiscal_day"] = "Only a limit per fiscal_month has a day on which that begins: leave it out."
    if rule.on_shortage != "fit" and "floor" in stated:
        found["floor"] = "A floor is for on_shortage: fit alone: leave it out, or say fit."
    return found


def problems(rule: Any) -> dict[str, str]:
    """By field. Empty: it makes sense."""
    found: dict[str, str] = {}
    # Without a metric that stands, that is what is to be said.
    if rule.metric in PERIODS and rule.per not in PERIODS[rule.metric]:
        allowed = ", ".join(PERIODS[rule.metric])
        found["per"] = f"A limit of {rule.metric} is per {allowed.replace(', ', ' or per ')}."
    if rule.metric == "spend":
        found |= _currency(rule)
    if rule.metric in ("requests", "in_flight"):
        if rule.hold == "hard":
            found["hold"] = "Requests are counted exactly anyway: hard is for tokens and spend."
        if rule.on_shortage == "fit":
            found["on_shortage"] = "A request cannot be made to fit a count of requests: fit is for tokens and spend."
    elif rule.on_shortage == "fit" and rule.metric == "tokens" and rule.tokens == "input":
        found["on_shortage"] = "Fit lowers the completion, which a limit of input tokens does not count. Use refuse."
    if rule.on_shortage == "fit" and rule.floor < 1:
        found["floor"] = "At least 1 completion token."
    if (rule.raised_amount is None) != (rule.raised_until is None):
        found["raised_amount"] = "A temporary amount needs its end, and the end an amount."
    if any(not 1 <= threshold <= 100 for threshold in rule.thresholds):
        found["thresholds"] = "Thresholds are per cent of the limit, from 1 to 100, such as 50, 80, 100."
    return found


def credit_problem(rule: Any) -> str:
    """Why a limit takes no top-up; empty: it does. What of a credit is unused when it expires is of one account."""
    if rule.metric != "spend" or rule.per != "total":
        return "Credit tops up a limit of spend in total. Choose or add such a limit."
    if rule.plan_id is not None:
        return (
            "A plan's limit is counted for each of its tenants, and a credit is one tenant's. Give the tenant a "
            "limit of spend in total of its own, which takes the place of its plan's, and top that up."
        )
    return ""


def _currency(rule: Any) -> dict[str, str]:
    owner = rule.tenant or (rule.key.tenant if rule.key else None)
    if owner is not None and rule.currency != owner.currency and rule.enabled:
        return {"currency": f"{owner} is charged in {owner.currency}: a limit in {rule.currency} would never count."}
    if not rule.currency:
        return {"currency": "Say in which currency: this limit is not of one tenant."}
    return {}
