"""accounting.md §4 for every protocol: classes that never go negative and add up to what the provider said."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.upstreams import anthropic, gemini
from gateway.upstreams.answers import answer_of
from gateway.upstreams.base import Usage
from gateway.upstreams.registry import ADAPTERS
from gateway.upstreams.translator import Translator
from gateway.upstreams.usage import LARGEST, parse_usage
from tests.upstreams.fakes import anthropic as anthropic_fake
from tests.upstreams.fakes import azure as azure_fake
from tests.upstreams.fakes import gemini as gemini_fake
from tests.upstreams.fakes.spoken import FACE, request
from tests.upstreams.test_usage import anything, classes

Json = dict[str, Any]
unhurried = settings(deadline=None, max_examples=200)  # the tokenizer's tables are loaded within one of them
counts = st.integers(0, 10**7)
hostile = counts | st.integers(-(10**20), 10**20) | anything
FIELDS = {
    "anthropic": (
        *("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
        *("output_tokens_details", "cache_creation"),
    ),
    "gemini": (
        *("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "cachedContentTokenCount"),
        *("toolUsePromptTokenCount", "totalTokenCount"),
    ),
    "azure": (
        *("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details"),
    ),
}


def whole(protocol: str, usage: Any) -> Json:
    if protocol == "anthropic":
        return anthropic_fake.message([anthropic_fake.HELLO], usage=usage)
    if protocol == "gemini":
        return {**gemini_fake.answer(gemini_fake.HELLO), "usageMetadata": usage}
    return azure_fake.message({"role": "assistant", "content": "Hello there."}, "stop") | {"usage": usage}


def booked(protocol: str, usage: Any) -> tuple[Usage, Json]:
    """(what is booked, the client's usage) of a whole answer that says this."""
    answer = answer_of(ADAPTERS[protocol]().answer(whole(protocol, usage)), request(), FACE)  # type: ignore[attr-defined]
    said: Json = json.loads(answer.body)["usage"]
    return answer.usage, said


@unhurried
@given(uncached=counts, read=counts, written=counts, output=counts, thinking=counts)
def test_anthropic_counts_cached_input_beside(
    uncached: int, read: int, written: int, output: int, thinking: int
) -> None:
    raw = {
        "input_tokens": uncached,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "output_tokens": output,
        "output_tokens_details": {"thinking_tokens": thinking},
    }
    usage = parse_usage(anthropic.usage_of(raw))
    assert usage is not None
    assert classes(usage)[:3] == (uncached, read, written)
    assert sum(classes(usage)[3:]) == output and usage.reasoning_tokens == min(thinking, output)


@unhurried
@given(prompt=counts, cached=counts, output=counts, thoughts=counts, tools=counts)
def test_gemini_counts_thoughts_beside(prompt: int, cached: int, output: int, thoughts: int, tools: int) -> None:
    raw = {
        "promptTokenCount": prompt,
        "cachedContentTokenCount": cached,
        "candidatesTokenCount": output,
        "thoughtsTokenCount": thoughts,
        "toolUsePromptTokenCount": tools,
        "totalTokenCount": prompt + output + thoughts + tools,
    }
    usage = parse_usage(gemini.usage_of(raw))
    assert usage is not None and min(classes(usage)) >= 0
    assert sum(classes(usage)[:3]) == prompt + tools and usage.cached_input_tokens == min(cached, prompt + tools)
    assert (usage.output_tokens, usage.reasoning_tokens) == (output, thoughts)
    assert usage.total == raw["totalTokenCount"]


@unhurried
@given(prompt=counts, output=counts, thoughts=counts, tools=counts)
def test_thoughts_that_gemini_counts_inside_are_not_counted_twice(
    prompt: int, output: int, thoughts: int, tools: int
) -> None:
    """Seen of some models and servers: the total says that candidatesTokenCount has the thoughts in it."""
    raw = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": output,
        "thoughtsTokenCount": thoughts,
        "toolUsePromptTokenCount": tools,
        "totalTokenCount": prompt + tools + output,
    }
    usage = parse_usage(gemini.usage_of(raw))
    assert usage is not None and min(classes(usage)) >= 0
    assert usage.total == raw["totalTokenCount"] and usage.reasoning_tokens == min(thoughts, output)


@pytest.mark.parametrize("protocol", FIELDS)
@unhurried
@given(data=st.data())
def test_nonsense_is_never_booked_as_it_is(protocol: str, data: st.DataObject) -> None:
    raw = data.draw(st.dictionaries(st.sampled_from(FIELDS[protocol]), hostile) | anything)
    usage, said = booked(protocol, raw)
    assert all(type(count) is int and 0 <= count <= 5 * LARGEST for count in classes(usage))
    assert said["prompt_tokens"] == sum(classes(usage)[:3])
    assert said["completion_tokens"] == sum(classes(usage)[3:])
    assert said["total_tokens"] == usage.total
    if usage.estimated:
        assert usage.output_tokens and usage.input_tokens  # counted here


@unhurried
@given(
    begun=st.dictionaries(st.sampled_from(FIELDS["anthropic"]), hostile) | anything,
    ended=st.dictionaries(st.sampled_from(FIELDS["anthropic"]), hostile) | anything,
)
def test_a_stream_books_no_nonsense_either(begun: Any, ended: Any) -> None:
    events = [
        {"type": "message_start", "message": {"usage": begun}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello there."}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": ended},
        {"type": "message_stop"},
    ]
    interpreter, translator = anthropic._Events(), Translator(FACE, lambda: 42)
    for event in events:
        translator.translate([json.dumps(chunk).encode() for chunk in interpreter.chunks(event)])
    assert interpreter.done and translator.failure is None
    assert min(classes(translator.usage)) >= 0
    assert translator.usage.total > 0 or not translator.usage.estimated


@unhurried
@given(said=st.lists(st.dictionaries(st.sampled_from(FIELDS["gemini"]), hostile) | anything, min_size=1, max_size=4))
def test_running_totals_never_take_back_what_was_delivered(said: list[Any]) -> None:
    interpreter, translator = gemini._Events(), Translator(FACE, lambda: 42)
    for usage in said:
        event = {**gemini_fake.answer([{"text": "Hello there. "}], None), "usageMetadata": usage}
        chunks = interpreter.chunks(event)
        translator.translate([json.dumps(chunk).encode() for chunk in chunks])
        assert min(classes(translator.usage)) >= 0
    if not any(isinstance(usage, dict) and set(usage) & set(FIELDS["gemini"][1:]) for usage in said):
        assert translator.usage.output_tokens >= 3 * len(said)


@pytest.mark.parametrize(
    ("ended", "booked"),
    [
        ({"output_tokens": 15}, Usage(25, 300, 100, 15)),
        ({"input_tokens": 0, "cache_read_input_tokens": None, "output_tokens": 15}, Usage(25, 300, 100, 15)),
        ({"input_tokens": 40, "cache_read_input_tokens": 310, "output_tokens": 15}, Usage(40, 310, 100, 15)),
        ({"output_tokens": 0}, Usage(25, 300, 100)),
    ],
)
def test_the_end_of_a_stream_takes_back_no_input(ended: Json, booked: Usage) -> None:
    interpreter = anthropic._Events()
    interpreter.chunks({"type": "message_start", "message": {"usage": anthropic_fake.USAGE}})
    chunks = interpreter.chunks({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": ended})
    assert parse_usage(chunks[-1]["usage"]) == booked


def test_recorded_usage_is_booked_to_the_token() -> None:
    thought = anthropic_fake.USAGE | {"output_tokens_details": {"thinking_tokens": 6}}
    assert booked("anthropic", thought)[0] == Usage(25, 300, 100, 9, 6)
    assert booked("gemini", gemini_fake.USAGE | {"thoughtsTokenCount": 8, "totalTokenCount": 60})[0] == Usage(
        10, 30, 0, 12, 8
    )
    # Older models say nothing of thoughts, but count them into the total.
    assert booked("gemini", gemini_fake.USAGE | {"totalTokenCount": 60})[0] == Usage(10, 30, 0, 12, 8)
    assert booked("azure", azure_fake.USAGE)[0] == Usage(4, 16, 0, 9, 0)
