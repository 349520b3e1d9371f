"""gateway.upstreams.echo and registry."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.upstreams import registry, tokens
from gateway.upstreams.base import Face, Target
from gateway.upstreams.echo import EchoAdapter
from tests.upstreams.conftest import FACE, collect, text_in

TARGET = Target(1, 1, "echo", "", "", "any", 5, 5)


def request(text: str = "Hello to all of you", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}]} | more


async def test_it_answers_with_what_the_user_said() -> None:
    answer = await EchoAdapter().complete(TARGET, request(), FACE)
    body = json.loads(answer.body)
    assert body["choices"][0]["message"]["content"] == "Hello to all of you"
    assert (body["id"], body["model"]) == (FACE.id, FACE.model)
    assert answer.usage.output_tokens == tokens.count("Hello to all of you") == body["usage"]["completion_tokens"]
    assert not answer.usage.estimated


async def test_it_streams_word_by_word() -> None:
    stream = await EchoAdapter().open_stream(TARGET, request(n=2), Face("c", 1, "m", include_usage=True))
    chunks = await collect(stream)
    assert text_in(chunks) == text_in(chunks, 1) == "Hello to all of you"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == stream.usage.output_tokens
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert stream.usage.output_tokens == 2 * tokens.count("Hello to all of you")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_it_stops_at_the_longest_length(name: str) -> None:
    answer = await EchoAdapter().complete(TARGET, request("one two three four five six", **{name: 3}), FACE)
    choice = json.loads(answer.body)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == "one two three"
    assert answer.usage.output_tokens == 3


@pytest.mark.parametrize("stop", [" all", ["nothing", " all"]])
async def test_it_stops_at_stop_sequences(stop: object) -> None:
    answer = await EchoAdapter().complete(TARGET, request(stop=stop), FACE)
    assert json.loads(answer.body)["choices"][0]["message"]["content"] == "Hello to"


async def test_it_takes_parts_and_tool_results_and_silence() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "text", "text": "b"},
    ]
    for messages, expected in (
        ([{"role": "user", "content": parts}], "a\nb"),
        ([{"role": "user", "content": "q"}, {"role": "tool", "content": "42"}], "42"),
        ([{"role": "system", "content": "s"}], "You said nothing."),
    ):
        answer = await EchoAdapter().complete(TARGET, {"messages": messages}, FACE)
        assert json.loads(answer.body)["choices"][0]["message"]["content"] == expected


async def test_a_stream_that_is_closed_says_what_was_sent() -> None:
    stream = await EchoAdapter().open_stream(TARGET, request(), FACE)
    iterator = aiter(stream)
    await anext(iterator)
    await anext(iterator)
    await stream.aclose()
    assert [piece async for piece in iterator] == []
    assert stream.usage.output_tokens == 1


def test_adapters_are_one_per_protocol_and_loop() -> None:
    async def pair() -> tuple[object, object]:
        first, second = registry.adapter_for("openai"), registry.adapter_for("openai")
        await registry.close_all()
        return first, second

    (first, second), (other, _) = asyncio.run(pair()), asyncio.run(pair())
    assert first is second
    assert first is not other
    assert registry.known_protocols() == ("openai", "azure", "anthropic", "gemini", "echo")


async def test_an_unknown_protocol_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        registry.adapter_for("gopher")
