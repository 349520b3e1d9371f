"""gateway.upstreams.anthropic: what becomes of Anthropic's messages, events and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import InvalidRequest, Unavailable, UpstreamError
from gateway.upstreams.base import Usage
from tests.upstream_scripts import body
from tests.upstreams.events import sdk_sees
from tests.upstreams.fakes import anthropic
from tests.upstreams.fakes.anthropic import event
from tests.upstreams.fakes.fake import events
from tests.upstreams.fakes.spoken import WEATHER, Spoken


@pytest.fixture
def spoken(speak: Callable[[str], Spoken]) -> Spoken:
    return speak("anthropic")


@pytest.mark.parametrize("streams", [False, True])
async def test_thinking_is_reasoning(spoken: Spoken, streams: bool) -> None:
    asked: Any = {"reasoning_effort": "low", "tools": [WEATHER]}
    if streams:
        chunks, usage = await spoken.stream(**asked)
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        reasoning = "".join(delta.get("reasoning", "") for delta in deltas)
        calls = sdk_sees(chunks).choices[0].message.tool_calls
        assert (calls[0].function.name, json.loads(calls[0].function.arguments)) == (
            "get_weather",
            {"location": "Paris, FR"},
        )
    else:
        said, usage = await spoken.complete(**asked)
        reasoning = said["choices"][0]["message"]["reasoning"]
    assert reasoning == "The user greets me."
    assert usage == Usage(25, 300, 100, 9, 6)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        *(("end_turn", "stop"), ("stop_sequence", "stop"), ("pause_turn", "stop"), ("max_tokens", "length")),
        *(("model_context_window_exceeded", "length"), ("refusal", "content_filter"), ("new_one", "stop")),
    ],
)
async def test_how_it_ends(spoken: Spoken, reason: str, finish: str) -> None:
    spoken.fake.queue(
        body(anthropic.message([anthropic.HELLO], stop_reason=reason)),
        events(*anthropic.stream([anthropic.HELLO], reason)),
    )
    assert (await spoken.complete())[0]["choices"][0]["finish_reason"] == finish
    assert (await spoken.stream())[0][-2]["choices"][0]["finish_reason"] == finish


async def test_blocks_that_nobody_asked_for_are_left_out(spoken: Spoken) -> None:
    content = [
        {"type": "redacted_thinking", "data": "xx"},
        {"type": "server_tool_use", "name": "w"},
        anthropic.HELLO,
        7,
    ]
    spoken.fake.queue(body(anthropic.message(content)))
    message = (await spoken.complete())[0]["choices"][0]["message"]
    assert message["content"] == "Hello there." and "tool_calls" not in message and "reasoning" not in message


async def test_what_a_tool_of_the_provider_is_told_is_no_call(spoken: Spoken) -> None:
    search = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
    piece = {"type": "input_json_delta", "partial_json": '{"query": "x"}'}
    parts = [
        event("content_block_start", index=0, content_block=search),
        event("content_block_delta", index=0, delta=piece),
        event("content_block_stop", index=0),
    ]
    whole = anthropic.stream([anthropic.HELLO])
    spoken.fake.queue(events(*whole[:2], *parts, *whole[2:]))
    message = sdk_sees((await spoken.stream())[0]).choices[0].message
    assert message.content == "Hello there." and message.tool_calls is None


async def test_a_call_without_arguments_has_an_empty_object(spoken: Spoken) -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "now", "input": {}}
    parts = [event("content_block_start", index=0, content_block=call), event("content_block_stop", index=0)]
    whole = anthropic.stream([], "tool_use")
    spoken.fake.queue(events(*whole[:2], *parts, *whole[2:]))
    calls = sdk_sees((await spoken.stream())[0]).choices[0].message.tool_calls
    assert [(item.id, item.function.name, item.function.arguments) for item in calls] == [("toolu_1", "now", "{}")]


async def test_overloaded_before_the_first_word_and_after_it(spoken: Spoken) -> None:
    whole = anthropic.stream([anthropic.HELLO])
    fault = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    spoken.fake.queue(events(whole[0], fault), events(*whole[:6], fault))
    with pytest.raises(Unavailable):
        await spoken.open()
    stream = await spoken.open()
    with pytest.raises(UpstreamError) as failed:
        _ = [piece async for piece in stream]
    assert type(failed.value) is UpstreamError
    assert stream.usage.estimated and stream.usage.input_tokens == 25 and 0 < stream.usage.output_tokens < 9


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ("messages.0.content.0.image.source.url.url: Only HTTPS URLs are supported.", "messages"),
        ("output_config.format.schema: For 'array' type, 'minItems' values are not supported", "response_format"),
        ("`temperature` and `top_p` cannot both be specified for this model.", "temperature"),
        ('"thinking.type.disabled" is not supported for this model.', "reasoning_effort"),
        ("max_tokens: 99999 > 64000, which is the maximum allowed number of output tokens", "max_tokens"),
        ("tools.0.custom.name: String should match pattern '^[a-zA-Z0-9_-]{1,128}$'", "tools"),
        ("Your request is odd.", None),
    ],
)
async def test_its_refusals_name_openais_parameter(spoken: Spoken, text: str, param: str | None) -> None:
    spoken.fake.queue(body(anthropic.error("invalid_request_error", text), 400))
    with pytest.raises(InvalidRequest) as refused:
        await spoken.complete()
    assert (refused.value.param, refused.value.message) == (param, text)


@pytest.mark.parametrize(
    "text",
    [
        "prompt is too long: 210345 tokens > 200000 maximum",
        "input length and `max_tokens` exceed context limit: 178959 + 64000 > 200000, decrease input length",
    ],
)
async def test_a_conversation_that_is_too_long_has_openais_code(spoken: Spoken, text: str) -> None:
    spoken.fake.queue(body(anthropic.error("invalid_request_error", text), 400))
    with pytest.raises(InvalidRequest) as refused:
        await spoken.complete()
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")
    assert "200000" in refused.value.message


async def test_its_errors_say_nothing_of_it(spoken: Spoken) -> None:
    text = "claude-sonnet-4-5-20250929: Claude says no, see https://docs.anthropic.com/x (Anthropic, sk-ant-api03-zz)"
    spoken.fake.queue(body(anthropic.error("invalid_request_error", text), 400))
    with pytest.raises(InvalidRequest) as refused:
        await spoken.complete()
    said = refused.value.message
    assert "acme-chat" in said and not {"claude", "anthropic", "sk-ant"} & set(said.lower().replace(",", " ").split())
    assert "nthropic" not in said and "laude" not in said
    text = "claude-opus-5-5-20260922. does not support forced tool_choice"
    spoken.fake.queue(body(anthropic.error("invalid_request_error", text), 400))
    with pytest.raises(InvalidRequest) as refused:
        await spoken.at(upstream_model="claude-opus-5-5").complete()
    assert refused.value.message == "acme-chat. does not support forced tool_choice"
