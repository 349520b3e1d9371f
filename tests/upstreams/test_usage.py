"""gateway.upstreams.usage and meter: classes that never overlap, never go negative, and add up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstreams import tokens
from gateway.upstreams.base import Usage
from gateway.upstreams.meter import FOLD_LENGTH, MOST_PIECES, Meter
from gateway.upstreams.usage import LARGEST, parse_usage, usage_body

counts = st.integers(0, 10**7)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("cached_tokens", "cache_write_tokens", "reasoning_tokens", "audio_tokens", "prompt_cache_hit_tokens")
details = st.dictionaries(st.sampled_from(FIELDS), counts | anything) | anything


def classes(usage: Usage) -> tuple[int, ...]:
    return (
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.cache_write_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
    )


@given(prompt=counts, completion=counts, before=details, after=details)
def test_classes_add_up_to_what_the_provider_said(prompt: int, completion: int, before: Any, after: Any) -> None:
    raw = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": before,
        "completion_tokens_details": after,
    }
    usage = parse_usage(raw)
    assert usage is not None and not usage.estimated
    assert all(count >= 0 for count in classes(usage))
    assert sum(classes(usage)[:3]) == prompt
    assert sum(classes(usage)[3:]) == completion
    body = usage_body(usage, raw)
    assert (body["prompt_tokens"], body["completion_tokens"]) == (prompt, completion)
    assert body["total_tokens"] == prompt + completion
    assert body["prompt_tokens_details"]["cached_tokens"] == usage.cached_input_tokens
    assert all(
        type(count) is int for part in ("prompt", "completion") for count in body[f"{part}_tokens_details"].values()
    )


@given(
    raw=anything | st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens"]), anything)
)
def test_nonsense_never_raises_and_never_gets_negative(raw: Any) -> None:
    usage = parse_usage(raw)
    assert usage is None or all(count >= 0 for count in classes(usage))


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_tokens": "12"},
        {"prompt_tokens": -1},
        {"prompt_tokens": None},
        {"completion_tokens": 2.5},
        {"completion_tokens": True},
        {"completion_tokens": LARGEST + 1},
    ],
)
def test_it_does_not_book_nonsense(changes: dict[str, Any]) -> None:
    assert parse_usage({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7} | changes) is None


def test_cached_written_and_reasoning_tokens_are_inside() -> None:
    raw = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "total_tokens": 150,
        "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30},
        "completion_tokens_details": {"reasoning_tokens": 20, "accepted_prediction_tokens": 5},
    }
    usage = parse_usage(raw)
    assert usage == Usage(10, 60, 30, 30, 20)
    assert usage_body(usage, raw)["completion_tokens_details"]["accepted_prediction_tokens"] == 5


def test_reasoning_that_only_the_total_has_is_booked() -> None:
    usage = parse_usage({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 35})
    assert usage == Usage(input_tokens=10, output_tokens=5, reasoning_tokens=20)


def test_deepseeks_names_are_known() -> None:
    usage = parse_usage({"prompt_tokens": 10, "completion_tokens": 5, "prompt_cache_hit_tokens": 8})
    assert usage == Usage(input_tokens=2, cached_input_tokens=8, output_tokens=5)


def test_the_meter_counts_late_and_keeps_little() -> None:
    meter = Meter()
    for _ in range(FOLD_LENGTH // 4):
        meter.add_output("hello world ")
        assert len(meter._pieces[0]) <= MOST_PIECES
    meter.add_reasoning("hm")
    assert sum(map(len, meter._pieces[0])) <= FOLD_LENGTH + MOST_PIECES * 12
    output, reasoning = meter.counts()
    assert output == pytest.approx(tokens.count("hello world " * (FOLD_LENGTH // 4)), abs=8)
    assert reasoning == 1
    meter.reset()
    assert meter.counts() == (0, 0)
