"""What is the same for every protocol: answers, streams and books in OpenAI's form, whatever was spoken."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from gateway.errors import GatewayError, InvalidRequest, RateLimited, Unavailable, UpstreamError, UpstreamTimeout
from gateway.upstreams.base import Usage
from gateway.upstreams.listing import list_models
from tests.upstream_scripts import body, html
from tests.upstreams.events import sdk_sees
from tests.upstreams.fakes import anthropic, azure, gemini
from tests.upstreams.fakes.fake import Json, events
from tests.upstreams.fakes.spoken import ANSWERED, ASKED, GREETING, STREAMS, WEATHER, Spoken

Speak = Callable[[str], Spoken]
PROTOCOLS = ("azure", "anthropic", "gemini")
USAGES = {
    "azure": Usage(4, 16, 0, 9, 0),
    "anthropic": Usage(25, 300, 100, 15, 0),
    "gemini": Usage(10, 30, 0, 12, 0),
}
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)


@every_protocol
async def test_it_answers(speak: Speak, protocol: str) -> None:
    said, usage = await speak(protocol).complete()
    answer = ChatCompletion.model_validate(said)
    assert (answer.id, answer.model, answer.object) == ("chatcmpl-ours", "acme-chat", "chat.completion")
    assert answer.choices[0].message.content == "Hello there."
    assert answer.choices[0].finish_reason == "stop"
    assert usage == USAGES[protocol]
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == usage.cached_input_tokens
    assert answer.usage.total_tokens == usage.total


@every_protocol
async def test_it_streams(speak: Speak, protocol: str) -> None:
    chunks, usage = await speak(protocol).stream()
    answer = sdk_sees(chunks)
    assert answer.choices[0].message.content == "Hello there."
    assert answer.choices[0].finish_reason == "stop"
    assert {chunk["model"] for chunk in chunks} == {"acme-chat"}
    assert usage == USAGES[protocol] and chunks[-1]["usage"]["total_tokens"] == usage.total


@every_protocol
@pytest.mark.parametrize("streams", [False, True])
async def test_it_calls_a_function_and_takes_the_answer(speak: Speak, protocol: str, streams: bool) -> None:
    spoken = speak(protocol)
    if streams:
        choice = sdk_sees((await spoken.stream(tools=[WEATHER]))[0]).choices[0]
    else:
        choice = ChatCompletion.model_validate((await spoken.complete(tools=[WEATHER]))[0]).choices[0]
    call = choice.message.tool_calls[0]
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "get_weather")
    assert json.loads(call.function.arguments) == {"location": "Paris, FR"}
    asked = {"role": "assistant", "content": None, "tool_calls": [call.model_dump(exclude={"index"})]}
    answered = {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 18}'}
    said, _ = await spoken.complete(GREETING, asked, answered, tools=[WEATHER])
    assert said["choices"][0]["message"]["content"] == "Hello there."


@every_protocol
async def test_calls_made_together_are_answered_together(speak: Speak, protocol: str) -> None:
    second = {**ASKED["tool_calls"][0], "id": "call.2"}
    asked = {**ASKED, "content": "Let me look.", "tool_calls": [ASKED["tool_calls"][0], second]}
    answers = [ANSWERED, {**ANSWERED, "tool_call_id": "call.2", "content": [{"type": "text", "text": "19 degrees"}]}]
    said, _ = await speak(protocol).complete(GREETING, asked, *answers, GREETING, tools=[WEATHER])
    assert said["choices"][0]["finish_reason"] in ("stop", "tool_calls")


@every_protocol
@pytest.mark.parametrize("step", [1, 7, 4096])
async def test_it_reads_a_stream_cut_into_any_pieces(speak: Speak, protocol: str, step: int) -> None:
    spoken = speak(protocol)
    whole = b"".join(STREAMS[protocol])
    pieces = [whole[start : start + step] for start in range(0, len(whole), step)]
    spoken.fake.queue(events(*(part for piece in pieces for part in (piece, 0.0))))
    chunks, usage = await spoken.stream()
    assert sdk_sees(chunks).choices[0].message.content == "Hello there."
    assert usage == USAGES[protocol]


@every_protocol
async def test_a_stream_that_is_cut_off_is_no_answer(speak: Speak, protocol: str) -> None:
    """After the text and before the end: what was delivered is counted, and the input is known if it was said."""
    spoken = speak(protocol)
    for ending in ({"cut": True}, {}):
        sent = [piece for piece in STREAMS[protocol] if b"there" in piece or b"Hello" in piece or b"_start" in piece]
        spoken.fake.queue(events(*sent[: 1 if protocol == "gemini" else None], **ending))
        stream = await spoken.open()
        got = b""
        with pytest.raises(UpstreamError):
            async for piece in stream:
                got += piece
        assert b"Hello " in got and b'"finish_reason":"stop"' not in got
        assert stream.usage.estimated and 1 <= stream.usage.output_tokens <= 5
        if protocol != "azure":
            assert stream.usage.cached_input_tokens == (300 if protocol == "anthropic" else 0)
            assert stream.usage.input_tokens == (25 if protocol == "anthropic" else 40)


@every_protocol
async def test_who_leaves_takes_the_provider_along(speak: Speak, protocol: str) -> None:
    spoken = speak(protocol)
    sent = STREAMS[protocol][:5] if protocol != "gemini" else STREAMS[protocol][:1]
    spoken.fake.queue(events(*sent, hang=True))
    stream = await spoken.open()
    await anext(aiter(stream))
    await stream.aclose()
    assert await asyncio.to_thread(spoken.fake.served[-1].ended.wait, 60)
    assert spoken.fake.served[-1].outcome == "gone"
    assert stream.usage.estimated


FAULTS: dict[str, list[tuple[Any, type[GatewayError], int]]] = {
    "anthropic": [
        (body(anthropic.error("rate_limit_error", "slow down"), 429, {"retry-after": "7"}), RateLimited, 429),
        (body(anthropic.error("overloaded_error", "Overloaded"), 529), Unavailable, 503),
        (body(anthropic.error("api_error", "Internal server error"), 500), UpstreamError, 502),
        (body(anthropic.error("timeout_error", "Request timed out"), 504), UpstreamTimeout, 504),
        (body(anthropic.error("permission_error", "no"), 403), UpstreamError, 502),
        (body(anthropic.error("not_found_error", "model: claude-x"), 404), UpstreamError, 502),
        (
            body(anthropic.error("invalid_request_error", "Your credit balance is too low to access the API."), 400),
            UpstreamError,
            502,
        ),
        (
            body(anthropic.error("invalid_request_error", "This organization has been disabled."), 400),
            UpstreamError,
            502,
        ),
        (body(anthropic.error("invalid_request_error", "messages: nope"), 400), InvalidRequest, 400),
        (body(anthropic.error("invalid_request_error", "tool_choice: no 'spend limit'"), 400), InvalidRequest, 400),
    ],
    "gemini": [
        (body(gemini.error(429, "RESOURCE_EXHAUSTED", "quota", {"retryDelay": "6.2s"}), 429), RateLimited, 429),
        (body(gemini.error(503, "UNAVAILABLE", "The model is overloaded."), 503), Unavailable, 503),
        (body(gemini.error(500, "INTERNAL", "An internal error has occurred."), 500), UpstreamError, 502),
        (body(gemini.error(504, "DEADLINE_EXCEEDED", "too late"), 504), UpstreamTimeout, 504),
        (body(gemini.error(400, "FAILED_PRECONDITION", "User location is not supported"), 400), UpstreamError, 502),
        (body(gemini.error(400, "INVALID_ARGUMENT", "contents: nope"), 400), InvalidRequest, 400),
        (body([gemini.error(403, "PERMISSION_DENIED", "no")], 403), UpstreamError, 502),
    ],
    "azure": [
        (body(azure.error("429", "Rate limit"), 429, {"retry-after-ms": "6200"}), RateLimited, 429),
        (body(azure.error("InternalServerError", "no"), 500), UpstreamError, 502),
        (body(azure.error("OperationNotSupported", "The operation does not work."), 400), UpstreamError, 502),
        (
            body(azure.error("BadRequest", "Model o3 is enabled only for api versions 2024-12-01-preview."), 400),
            UpstreamError,
            502,
        ),
        (body(azure.error("BadRequest", "No tool 'OperationNotSupported'."), 400), InvalidRequest, 400),
        (body(azure.error("content_filter", "The prompt was filtered.", param="prompt"), 400), InvalidRequest, 400),
    ],
}
FAULT_CASES = [(protocol, *case) for protocol, cases in FAULTS.items() for case in cases]


@pytest.mark.parametrize(("protocol", "script", "kind", "status"), FAULT_CASES)
@pytest.mark.parametrize("streams", [False, True])
async def test_its_errors_are_ours(
    speak: Speak, protocol: str, script: Any, kind: type[GatewayError], status: int, streams: bool
) -> None:
    spoken = speak(protocol)
    spoken.fake.queue(script)
    with pytest.raises(kind) as caught:
        await (spoken.open() if streams else spoken.complete())
    assert type(caught.value) is kind and caught.value.status == status
    if status == 429:
        assert caught.value.headers["retry-after"] == "7"


@every_protocol
async def test_a_wrong_key_is_our_fault(speak: Speak, protocol: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        await speak(protocol).at(credential="wrong").complete()
    assert caught.value.status == 502
    assert "key" not in caught.value.message.lower()


@every_protocol
@pytest.mark.parametrize(
    "said",
    [
        {},
        [],
        "text",
        7,
        None,
        {"choices": {}},
        {"content": 7},
        {"candidates": []},
        {"candidates": [7]},
        {"error": {}},
    ],
)
@pytest.mark.parametrize("streams", [False, True])
async def test_what_is_no_answer_is_none(speak: Speak, protocol: str, said: Json, streams: bool) -> None:
    spoken = speak(protocol)
    spoken.fake.queue(body(said))
    with pytest.raises(UpstreamError):
        await (spoken.open() if streams else spoken.complete())


@every_protocol
async def test_a_web_page_is_no_stream(speak: Speak, protocol: str) -> None:
    spoken = speak(protocol)
    for script in (html(200), html(502), events(b"data: {oops\n\n"), events(b"data: [7]\n\n"), events()):
        spoken.fake.queue(script)
        with pytest.raises(UpstreamError):
            await spoken.open()


@every_protocol
async def test_a_whole_answer_becomes_a_stream(speak: Speak, protocol: str) -> None:
    spoken = speak(protocol)
    whole = {
        "azure": azure.message({"role": "assistant", "content": "Hello there."}, "stop"),
        "anthropic": anthropic.message([anthropic.HELLO]),
        "gemini": gemini.answer(gemini.HELLO),
    }
    spoken.fake.queue(body(whole[protocol]))
    chunks, usage = await spoken.stream()
    assert sdk_sees(chunks).choices[0].message.content == "Hello there." and usage == USAGES[protocol]


@pytest.mark.parametrize("protocol", ["anthropic", "gemini"])
@pytest.mark.parametrize("end", ["", "/"])
async def test_a_host_alone_is_enough(speak: Speak, protocol: str, end: str) -> None:
    spoken = speak(protocol)
    spoken.at(base_url=spoken.fake.url.removesuffix(spoken.fake.base) + end)
    assert (await spoken.complete())[1] == (await spoken.stream())[1] == USAGES[protocol]
    assert (await list_models(spoken.target)).models


@every_protocol
async def test_it_lists_its_models(speak: Speak, protocol: str) -> None:
    spoken = speak(protocol)
    listing = await list_models(spoken.target)
    assert listing.status == 200 and listing.models
    assert not any(name.startswith("models/") for name in listing.models)
    refused = await list_models(spoken.at(credential="wrong").target)
    assert refused.status in (401, 403) and refused.models == ()
