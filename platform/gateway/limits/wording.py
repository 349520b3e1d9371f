"""Limits in words, for people: amounts of spend as decimals with a currency, windows in the tenant's time. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from gateway.catalogue.pricing import format_amount

PERIODS = {
    "minute": "per minute",
    "day": "per day",
    "week": "per week",
    "month": "per month",
    "fiscal_month": "per fiscal month",
    "total": "in total",
    "": "in flight",
}


class Worded(Protocol):
    """What of a rule is put into words; `LimitRule` and `facts.Rule` both have it."""

    @property
    def metric(self) -> str: ...
    @property
    def per(self) -> str: ...
    @property
    def tokens(self) -> str: ...
    @property
    def currency(self) -> str: ...


def kind_of(rule: Worded) -> str:
    """'output tokens per day', 'spend per month', 'requests in flight'."""
    return _kind(rule.metric, rule.per, rule.tokens)


def kind_of_facts(facts: Mapping[str, Any]) -> str:
    """The same of what a warning keeps of its limit; empty: the limit had gone when it was looked at."""
    return _kind(facts["metric"], facts.get("per", ""), facts.get("tokens", "both")) if facts.get("metric") else ""


def _kind(metric: str, per: str, tokens: str) -> str:
    if metric == "in_flight":
        return "requests in flight"
    which = f"{tokens} " if metric == "tokens" and tokens != "both" else ""
    return f"{which}{metric} {PERIODS[per]}"


def quantity(rule: Worded, value: int | Decimal) -> str:
    """'12.5 USD' or '30': what is counted, as people read it."""
    return f"{format_amount(value, 2)} {rule.currency}" if rule.metric == "spend" else str(int(value))


def window_text(rule: Worded, starts: datetime, ends: datetime | None, zone: ZoneInfo) -> str:
    if rule.metric == "in_flight":
        return "now"
    if rule.per == "minute":
        return "any 60 seconds"
    if ends is None:
        return "for ever"
    first, after = starts.astimezone(zone), ends.astimezone(zone)
    return f"{first:%Y-%m-%d %H:%M} to {after:%Y-%m-%d %H:%M} {zone.key}"
