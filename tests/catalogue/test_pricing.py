"""Rating is exact: checked against fractions, which cannot be wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalogue.pricing import CLASSES, Rates, amount, format_amount, hold, parse_amount, rate

units = st.integers(0, 10**9)
prices = st.integers(0, 10**13)


def rates(**prices_: int) -> Rates:
    classes = dict.fromkeys([*CLASSES, "request"], 0) | prices_
    return Rates(price_id=1, currency="USD", effective_from=datetime(2026, 1, 1, tzinfo=UTC), **classes)


@given(units, prices)
def test_it_rounds_half_even_once(count: int, price: int) -> None:
    assert amount(count, price) == round(Fraction(count * price, 10**6))  # Python's round is half-even


@given(st.fixed_dictionaries({name: st.tuples(units, prices) for name in CLASSES}))
def test_class_lines_add_up_to_the_record(parts: dict[str, tuple[int, int]]) -> None:
    total, lines = rate(rates(**{n: p for n, (_, p) in parts.items()}), {n: u for n, (u, _) in parts.items()})
    assert total == sum(line[3] for line in lines)
    assert total == sum(round(Fraction(u * p, 10**6)) for u, p in parts.values())


@given(units, units, st.fixed_dictionaries({name: prices for name in CLASSES}))
def test_a_hold_covers_any_split_of_its_tokens(input_tokens: int, output_tokens: int, price: dict[str, int]) -> None:
    priced = rates(**price)
    worst = max(
        rate(priced, {"input": input_tokens, "output": output_tokens})[0],
        rate(priced, {"cache_write": input_tokens, "reasoning": output_tokens})[0],
    )
    assert hold(priced, input_tokens, output_tokens) >= worst


def test_the_example_of_the_documentation() -> None:
    priced = rates(input=parse_amount("0.15"), cached_input=parse_amount("0.075"), output=parse_amount("0.60"))
    total, lines = rate(priced, {"input": 1_000, "cached_input": 200, "output": 500})
    assert format_amount(total) == "0.000465"
    assert [line[3] for line in lines] == [150_000, 15_000, 300_000]


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_amounts_survive_text_exactly(nano: int) -> None:
    assert parse_amount(format_amount(nano)) == nano


@pytest.mark.parametrize(
    ("text", "problem"),
    [("NaN", "finite"), ("1e400", "large"), ("0.0000000001", "nine"), ("ten", "decimal"), ("", "decimal")],
)
def test_it_refuses_what_is_no_amount(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_amount(text)


def test_it_pads_for_reading() -> None:
    assert (format_amount(150_000_000), format_amount(-1_500_000_000, 2), format_amount(0, 2)) == (
        "0.15",
        "-1.50",
        "0.00",
    )
