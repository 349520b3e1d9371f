"""gateway.upstreams.gemini: what becomes of Gemini's candidates, events and errors."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from gateway.errors import InvalidRequest, RateLimited, Unavailable, UpstreamError
from gateway.upstreams.base import Usage
from tests.upstream_scripts import body
from tests.upstreams.events import sdk_sees
from tests.upstreams.fakes import gemini
from tests.upstreams.fakes.fake import Json, events
from tests.upstreams.fakes.spoken import WEATHER, Spoken


@pytest.fixture
def spoken(speak: Callable[[str], Spoken]) -> Spoken:
    return speak("gemini")


@pytest.mark.parametrize("streams", [False, True])
async def test_thoughts_are_reasoning(spoken: Spoken, streams: bool) -> None:
    if streams:
        chunks, usage = await spoken.stream(reasoning_effort="low")
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        reasoning = "".join(delta.get("reasoning", "") for delta in deltas)
        assert chunks[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] == 8
    else:
        said, usage = await spoken.complete(reasoning_effort="low")
        reasoning = said["choices"][0]["message"]["reasoning"]
    assert reasoning == "The user greets me."
    assert usage == Usage(10, 30, 0, 12, 8)


async def test_several_candidates_and_several_calls(spoken: Spoken) -> None:
    said, _ = await spoken.complete(n=3)
    assert [choice["index"] for choice in said["choices"]] == [0, 1, 2]
    call = {"functionCall": {"name": "now"}}
    spoken.fake.queue(events(*gemini.stream([gemini.CALL, call, call])), body(gemini.answer([call, call])))
    streamed = sdk_sees((await spoken.stream(tools=[WEATHER]))[0]).choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert [item.function.name for item in streamed.message.tool_calls] == ["get_weather", "now", "now"]
    assert [json.loads(item.function.arguments) for item in streamed.message.tool_calls[1:]] == [{}, {}]
    message = (await spoken.complete(tools=[WEATHER]))[0]["choices"][0]["message"]
    ids = {item["id"] for item in message["tool_calls"]} | {item.id for item in streamed.message.tool_calls}
    assert len(ids) == 5 and all(name.startswith("call_") for name in ids)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        *(
            (reason, "content_filter")
            for reason in ("SAFETY", "RECITATION", "PROHIBITED_CONTENT", "SPII", "BLOCKLIST")
        ),
        ("NEW_REASON", "content_filter"),
    ],
)
async def test_how_it_ends(spoken: Spoken, reason: str, finish: str) -> None:
    spoken.fake.queue(body(gemini.answer([{"text": "Hel"}], reason)), events(gemini.event(gemini.answer([], reason))))
    assert (await spoken.complete())[0]["choices"][0]["finish_reason"] == finish
    assert (await spoken.stream())[0][-2]["choices"][0]["finish_reason"] == finish


BROKEN = ("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "MISSING_THOUGHT_SIGNATURE", "PUP_LIMITED_DISABLED")


@pytest.mark.parametrize("reason", BROKEN)
async def test_a_broken_answer_is_no_success(spoken: Spoken, reason: str) -> None:
    broken = gemini.answer([], reason)
    spoken.fake.queue(body(broken), events(gemini.event(broken)))
    for call in (spoken.complete, spoken.open):
        with pytest.raises(UpstreamError):
            await call()


async def test_a_blocked_prompt_is_an_answer_that_is_billed(spoken: Spoken) -> None:
    usage: Json = {"promptTokenCount": 40, "totalTokenCount": 40}
    blocked: Json = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": usage}
    spoken.fake.queue(body(blocked), events(gemini.event(blocked)))
    said, booked = await spoken.complete()
    choice = said["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("content_filter", None)
    assert "blocked" in choice["message"]["refusal"]
    assert booked == Usage(input_tokens=40)
    chunks, booked = await spoken.stream()
    assert chunks[-2]["choices"][0]["finish_reason"] == "content_filter" and booked == Usage(input_tokens=40)


@pytest.mark.parametrize("written", [gemini.event, gemini.bare])
async def test_faults_before_the_first_word_and_after_it(spoken: Spoken, written: Callable[[Json], bytes]) -> None:
    overloaded = written(gemini.error(503, "UNAVAILABLE", "The model is overloaded."))
    limited = written(gemini.error(429, "RESOURCE_EXHAUSTED", "Quota", {"retryDelay": "34.07s"}))
    begun = gemini.stream(gemini.HELLO)[0]
    spoken.fake.queue(events(overloaded), events(limited), events(begun, overloaded))
    with pytest.raises(Unavailable):
        await spoken.open()
    with pytest.raises(RateLimited) as refused:
        await spoken.open()
    assert refused.value.headers["retry-after"] == "35"
    stream = await spoken.open()
    with pytest.raises(UpstreamError) as failed:
        _ = [piece async for piece in stream]
    assert type(failed.value) is UpstreamError and stream.usage.estimated
    assert (stream.usage.input_tokens, stream.usage.output_tokens) == (40, 2)


async def test_running_totals_are_the_books_of_who_leaves(spoken: Spoken) -> None:
    early = gemini.answer([{"text": "Hello "}], None, {"promptTokenCount": 40, "candidatesTokenCount": 5})
    spoken.fake.queue(events(gemini.event(early), hang=True))
    stream = await spoken.open()
    await anext(aiter(stream))
    assert stream.usage == Usage(40, output_tokens=5)
    await stream.aclose()


async def test_its_errors_say_nothing_of_it(spoken: Spoken) -> None:
    text = (
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576) by Gemini. "
        "See https://ai.google.dev/x, key AIzaSyOfTheProvider0123456789, models/gemini-3.8-flash"
    )
    spoken.fake.queue(body(gemini.error(400, "INVALID_ARGUMENT", text), 400))
    with pytest.raises(InvalidRequest) as refused:
        await spoken.complete()
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")
    assert "1048576" in refused.value.message
    assert not any(word in refused.value.message for word in ("Gemini", "gemini", "google", "AIza"))
