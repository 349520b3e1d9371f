"""gateway.upstreams.openai, streaming: over a real socket, cut, stalled and left at any point."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import InvalidRequest, RateLimited, UpstreamError, UpstreamTimeout
from gateway.upstreams.base import Face, Target, Usage
from gateway.upstreams.client import STREAM_GRACE_S
from gateway.upstreams.openai import OpenAIAdapter
from tests import upstream_scripts as scripts
from tests.upstream import Upstream
from tests.upstreams.conftest import FACE, REQUEST, collect, parse, text_in

MakeTarget = Callable[..., Target]
STREAM = REQUEST | {"stream": True}


async def test_usage_is_always_asked_for(adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget) -> None:
    request = STREAM | {"stream_options": {"include_usage": False, "include_obfuscation": False}}
    stream = await adapter.open_stream(target("theirs"), request, FACE)
    chunks = await collect(stream)
    sent = upstream.served[0].body
    assert sent["stream"] is True and sent["model"] == "theirs"
    assert sent["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert text_in(chunks) == "Hello there."
    assert not any("usage" in chunk for chunk in chunks)
    assert stream.usage == Usage(input_tokens=7, output_tokens=3)


async def test_done_is_never_among_the_bytes(adapter: OpenAIAdapter, target: MakeTarget) -> None:
    stream = await adapter.open_stream(target(), STREAM, Face("c", 1, "m", include_usage=True))
    pieces = [piece async for piece in stream]
    assert b"[DONE]" not in b"".join(pieces)
    assert parse(pieces[-1])[-1]["usage"]["total_tokens"] == 10


@pytest.mark.parametrize(
    "script",
    [
        scripts.Stream(comments=True),
        scripts.Stream(eol=b"\r\n"),
        scripts.Stream(eol=b"\r"),
        scripts.Stream(split=1),
        scripts.Stream(split=7, eol=b"\r\n"),
        scripts.Stream(joined=True),
        scripts.Stream(done=False),
        scripts.Stream(role=False),
        scripts.Stream(usage="merged"),
        scripts.Stream(usage="continuous"),
        scripts.Stream(top={"provider": "Acme", "x": [{}]}),
        scripts.Stream(finish="", usage="merged"),
    ],
)
async def test_every_way_of_writing_a_stream_is_read(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget, script: scripts.Script
) -> None:
    upstream.queue(script)
    stream = await adapter.open_stream(target(), STREAM, FACE)
    chunks = await collect(stream)
    assert text_in(chunks) == "Hello there."
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert stream.usage == Usage(input_tokens=7, output_tokens=3)


async def test_what_one_read_delivered_is_one_piece(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget
) -> None:
    upstream.queue(scripts.Stream(scripts.words(50), joined=True))
    stream = await adapter.open_stream(target(), STREAM, FACE)
    pieces = [piece async for piece in stream]
    assert len(pieces) < 5 and len(parse(b"".join(pieces))) == 52


async def test_several_choices(adapter: OpenAIAdapter, target: MakeTarget) -> None:
    chunks = await collect(await adapter.open_stream(target(), STREAM | {"n": 3}, FACE))
    assert [text_in(chunks, index) for index in range(3)] == ["Hello there."] * 3


async def test_large_events_pass(adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget) -> None:
    upstream.queue(scripts.Stream(["x" * 2**20, "y" * 2**20]))
    chunks = await collect(await adapter.open_stream(target(), STREAM, FACE))
    assert text_in(chunks) == "x" * 2**20 + "y" * 2**20


async def test_an_event_without_end_is_cut_off(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.upstreams.sse.LARGEST_EVENT", 100_000)
    upstream.queue(scripts.Raw((b"data: ", *(b"x" * 9_000,) * 100), headers={"content-type": "text/event-stream"}))
    with pytest.raises(UpstreamError):
        await adapter.open_stream(target(), STREAM, FACE)


async def test_a_provider_that_cannot_stream_is_streamed(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget
) -> None:
    calls = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    upstream.queue(scripts.Answer("Whole.", message={"tool_calls": calls, "reasoning": "hm"}))
    stream = await adapter.open_stream(target(), STREAM, FACE)
    chunks = await collect(stream)
    assert (text_in(chunks), text_in(chunks, field="reasoning")) == ("Whole.", "hm")
    assert chunks[1]["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **calls[0]}]
    assert stream.usage == Usage(input_tokens=7, output_tokens=1)


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        (scripts.error(400, "bad"), InvalidRequest),
        (scripts.error(429), RateLimited),
        (scripts.error(500), UpstreamError),
        (scripts.html(200), UpstreamError),
        (scripts.body({"error": {"message": "no"}}), UpstreamError),
        (scripts.body({"choices": []}), UpstreamError),
        (scripts.truncated(), UpstreamError),
        (scripts.drop, UpstreamError),
        (scripts.Stream(error_after=0), UpstreamError),
        (scripts.Stream(cut_after=0), UpstreamError),
        (scripts.Stream([], role=False, finish="", usage="none", top={"x": 1}), UpstreamError),
        (scripts.Raw(headers={"content-type": "text/event-stream"}), UpstreamError),
        (scripts.Raw((b"data: {oops}\n\n",), headers={"content-type": "text/event-stream"}), UpstreamError),
    ],
)
async def test_a_fault_before_the_first_event_is_raised_on_opening(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget, script: scripts.Script, fault: type[Exception]
) -> None:
    upstream.queue(script)
    with pytest.raises(fault):
        await adapter.open_stream(target(), STREAM, FACE)


@pytest.mark.parametrize("fault", ["cut_after", "error_after"])
@pytest.mark.parametrize("after", [1, 2, 4])
@pytest.mark.parametrize("usage", ["last", "continuous"])
async def test_a_fault_midway_comes_after_what_was_delivered(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget, fault: str, after: int, usage: str
) -> None:
    upstream.queue(scripts.Stream(["one", " two", " three", " four"], 0.02, usage, **{fault: after}))
    stream = await adapter.open_stream(target(), STREAM, FACE)
    sent: list[bytes] = []
    with pytest.raises(UpstreamError) as caught:
        async for piece in stream:
            sent.append(piece)
    assert "acme" not in caught.value.message
    chunks = parse(b"".join(sent))
    assert text_in(chunks) == "".join(["one", " two", " three", " four"][: after - 1])
    assert all(choice["finish_reason"] is None for chunk in chunks for choice in chunk["choices"])
    assert stream.usage.output_tokens == after - 1
    assert stream.usage.estimated == (usage == "last")


async def test_bytes_cut_anywhere_never_look_complete(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget
) -> None:
    whole = b"".join(
        [b'data: {"choices":[{"index":0,"delta":{"content":"%d"},"finish_reason":null}]}\n\n' % i for i in range(3)]
    )
    for end in range(0, len(whole), 13):
        upstream.queue(scripts.Raw((whole[:end],), headers={"content-type": "text/event-stream"}, cut=True))
        with pytest.raises(UpstreamError):
            await collect(await adapter.open_stream(target(), STREAM, FACE))


async def test_a_stalled_stream_is_a_timeout(adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget) -> None:
    upstream.queue(scripts.Stream(hang_after=2))
    stream = await adapter.open_stream(target(first_byte_timeout_s=60, read_timeout_s=0.5), STREAM, FACE)
    with pytest.raises(UpstreamTimeout):
        await collect(stream)
    assert await asyncio.to_thread(upstream.served[0].ended.wait, 60)
    assert stream.usage == Usage(11, output_tokens=1, estimated=True)


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


async def gone(upstream: Upstream) -> bool:
    return await asyncio.to_thread(upstream.served[0].ended.wait, 60) and upstream.served[0].outcome == "gone"


async def test_cancelling_while_opening_closes_the_connection(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget
) -> None:
    for script in (scripts.hang, scripts.Raw(headers={"content-type": "text/event-stream"}, hang=True)):
        upstream.reset()
        upstream.queue(script)
        task = asyncio.create_task(adapter.open_stream(target(), STREAM, FACE))
        await until(lambda: upstream.served)
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await gone(upstream)


async def test_cancelling_while_iterating_closes_the_connection(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget
) -> None:
    upstream.queue(scripts.Stream(hang_after=2))
    stream = await adapter.open_stream(target(), STREAM, FACE)
    task = asyncio.create_task(collect(stream))
    await until(lambda: stream.usage.output_tokens == 1)
    await asyncio.sleep(0.05)  # it waits for more
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await gone(upstream)
    assert stream.usage == Usage(11, output_tokens=1, estimated=True)


async def test_closing_closes_the_connection(adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget) -> None:
    upstream.queue(scripts.Stream(scripts.words(1000), 0.01))
    stream = await adapter.open_stream(target(), STREAM, FACE)
    async for _ in stream:
        break
    await stream.aclose()
    await stream.aclose()
    assert await gone(upstream)
    assert [piece async for piece in stream] == []


def rested(adapter: OpenAIAdapter) -> bool:
    """A connection is back, and has been for as long as one rests between two requests."""
    pool = adapter._client._pools[True]
    back = [since for resting in pool._conns.values() for _, since in resting]
    return any(time.monotonic() - since >= STREAM_GRACE_S for since in back)


@pytest.mark.parametrize("script", [scripts.Stream(), scripts.Stream(done=False), scripts.Stream(joined=True)])
async def test_a_connection_that_was_read_to_its_end_is_used_again(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget, script: scripts.Script
) -> None:
    before = upstream.connections
    for _ in range(4):
        upstream.queue(script)
        stream = await adapter.open_stream(target(), STREAM, FACE)
        await collect(stream)
        await stream.aclose()
        await until(lambda: rested(adapter))  # the last bytes of the body come after [DONE]
    assert upstream.connections == before + 1


async def test_a_provider_that_closes_after_a_stream_does_not_fail_the_next_request(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget
) -> None:
    async def stream_and_close(exchange: scripts.Exchange) -> None:
        await scripts.Stream()(exchange)
        await asyncio.sleep(0.005)
        exchange.cut()

    upstream.script("closes", stream_and_close)
    for _ in range(5):  # llama.cpp does so, after promising to keep the connection
        assert text_in(await collect(await adapter.open_stream(target("closes"), STREAM, FACE))) == "Hello there."
        await adapter.complete(target(), REQUEST, FACE)


async def test_a_body_that_goes_on_after_done_is_not_waited_for(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.upstreams.response.DRAIN_S", 0.05)
    event = b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    upstream.queue(scripts.Raw((event,), headers={"content-type": "text/event-stream"}, hang=True))
    stream = await adapter.open_stream(target(), STREAM, FACE)
    assert text_in(await collect(stream)) == "x"
    assert await gone(upstream)


async def test_a_slow_reader_gets_everything(adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget) -> None:
    parts: list[Any] = [f"{n:05} " + "x" * 5_000 for n in range(200)]
    upstream.queue(scripts.Stream(parts))
    stream = await adapter.open_stream(target(), STREAM, FACE)
    sent = []
    async for piece in stream:
        sent.append(piece)
        await asyncio.sleep(0.002)
    assert text_in(parse(b"".join(sent))) == "".join(parts)
