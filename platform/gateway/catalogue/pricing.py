"""Rating, pure arithmetic on integers (shared/accounting.md 1, 4, 11).

A price is nano-units per 1,000,000 units. An amount is `units x price / 10^6`, rounded half-even once per
token class, so that class lines = record = total holds exactly everywhere. No float comes near.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal, InvalidOperation

MILLION = 1_000_000
NANO = 1_000_000_000
CLASSES = ("input", "cached_input", "cache_write", "output", "reasoning")


@dataclass(frozen=True, slots=True)
class Rates:
    """A price, resolved: nano-units per million of each class, all of them set."""

    price_id: int
    currency: str
    effective_from: datetime
    input: int
    cached_input: int
    cache_write: int
    output: int
    reasoning: int
    request: int
    used: bool = False


Line = tuple[str, int, int, int]  # class, units, price, amount


def amount(units: int, price: int) -> int:
    """units x price / 10^6, half-even."""
    quotient, remainder = divmod(units * price, MILLION)
    if remainder * 2 > MILLION or (remainder * 2 == MILLION and quotient & 1):
        quotient += 1
    return quotient


def rate(rates: Rates, units: dict[str, int]) -> tuple[int, list[Line]]:
    """The amount of one record on one side, and its class lines (classes with no units are left out)."""
    lines: list[Line] = []
    total = 0
    for name in (*CLASSES, "request") if rates.request else CLASSES:
        count = units.get(name)
        if count:
            price: int = getattr(rates, name)
            charged = amount(count, price)
            total += charged
            lines.append((name, count, price, charged))
    return total, lines


def hold(rates: Rates, input_tokens: int, output_tokens: int) -> int:
    """What to hold: rounded up, plus one nano-unit per class, at the dearer of the classes that may apply."""
    dear_input = max(rates.input, rates.cached_input, rates.cache_write)
    dear_output = max(rates.output, rates.reasoning)
    # Asked for by every limit of spend of every request: written out, which is thrice as fast as a loop.
    return (
        3
        - (-input_tokens * dear_input // MILLION)
        - (-output_tokens * dear_output // MILLION)
        - (-rates.request // MILLION)
    )


def dearest(many: Sequence[Rates]) -> Rates:
    """To hold with, where it is not known yet which of several prices will be charged: each class at its dearest."""
    top = {name: max(getattr(rates, name) for rates in many) for name in (*CLASSES, "request")}
    return replace(many[0], **top)


def parse_amount(text: str) -> int:
    """'0.15' of a currency -> 150,000,000 nano-units. Raises ValueError with a text for people."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a decimal number") from None
    if not value.is_finite():
        raise ValueError(f"{text!r} is not a finite number")
    nano = value * NANO
    if nano != nano.to_integral_value():
        raise ValueError(f"{text!r} has more than nine decimal places")
    if not -(2**63) < nano < 2**63:
        raise ValueError(f"{text!r} is too large")
    return int(nano)


def format_amount(nano: int | Decimal, places: int | None = None) -> str:
    """Nano-units as a plain decimal string, exactly: 150000000 -> '0.15'. `places` pads with zeros."""
    value = int(nano)
    sign, value = ("-", -value) if value < 0 else ("", value)
    whole, fraction = divmod(value, NANO)
    digits = f"{fraction:09d}".rstrip("0")
    if places is not None:
        digits = digits.ljust(places, "0")
    return f"{sign}{whole}" + (f".{digits}" if digits else "")
