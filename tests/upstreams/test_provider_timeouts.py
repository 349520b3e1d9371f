"""How long a provider may keep us waiting, and how far the call had come when it did (errors.Phase)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import InvalidRequest, RateLimited, Unavailable, UpstreamError, UpstreamTimeout
from gateway.upstreams import response as responses
from gateway.upstreams.base import Target
from gateway.upstreams.client import Client
from gateway.upstreams.openai import OpenAIAdapter
from tests import upstream_scripts as scripts
from tests.upstream import Upstream
from tests.upstreams.conftest import FACE, REQUEST, collect, text_in
from tests.upstreams.test_response import LARGE, serving

MakeTarget = Callable[..., Target]
SSE = {"content-type": "text/event-stream"}
JSON = {"content-type": "application/json"}
DRIP = (b" ", 0.05) * 100


async def fails(adapter: OpenAIAdapter, target: Target, *, stream: bool) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        if stream:
            await collect(await adapter.open_stream(target, REQUEST | {"stream": True}, FACE))
        else:
            await adapter.complete(target, REQUEST, FACE)
    assert "127.0.0.1" not in caught.value.message and "any" not in caught.value.message.split()
    return caught.value


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "phase", "status"),
    [(scripts.hang, "sent", None), (scripts.Raw(headers=JSON, hang=True), "head", 200)],
    ids=["before the headers", "after the headers"],
)
async def test_the_first_byte_of_the_body_is_waited_for(
    adapter: OpenAIAdapter,
    upstream: Upstream,
    target: MakeTarget,
    script: scripts.Script,
    phase: str,
    status: int | None,
    stream: bool,
) -> None:
    upstream.queue(script)
    seconds = 0.2 if phase == "sent" else 1.0  # time enough for the headers to come
    late = await fails(adapter, target(first_byte_timeout_s=seconds, read_timeout_s=60), stream=stream)
    assert isinstance(late, UpstreamTimeout)
    assert (late.phase, late.upstream_status) == (phase, status)
    assert await asyncio.to_thread(upstream.served[0].ended.wait, 60)


async def test_headers_do_not_start_the_wait_anew(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget
) -> None:
    async def script(exchange: scripts.Exchange) -> None:
        await exchange.pause(0.4)
        await exchange.head(200, SSE)
        await exchange.pause(1.0)
        await exchange.write(b"data: {}\n\n")

    upstream.queue(script)
    late = await fails(adapter, target(first_byte_timeout_s=1.2, read_timeout_s=60), stream=True)
    assert (late.status, late.phase) == (504, "head")


async def test_the_first_byte_may_take_longer_than_the_next(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget
) -> None:
    upstream.queue(scripts.Answer(delay=0.6))
    assert (await adapter.complete(target(first_byte_timeout_s=30, read_timeout_s=0.2), REQUEST, FACE)).body
    upstream.queue(scripts.Stream(hang_after=2))
    late = await fails(adapter, target(first_byte_timeout_s=30, read_timeout_s=0.2), stream=True)
    assert (late.status, late.phase, late.upstream_status) == (504, "body", 200)


async def test_a_silence_between_pieces_may_last_as_long_as_it_says(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget
) -> None:
    event = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":%b}]}\n\n'
    upstream.queue(scripts.Raw((event % b"null", 1.3, event % b'"stop"', b"data: [DONE]\n\n"), headers=SSE))
    stream = await adapter.open_stream(target(first_byte_timeout_s=1, read_timeout_s=60), REQUEST, FACE)
    assert text_in(await collect(stream)) == "xx"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "phase"),
    [
        (scripts.hang, "sent"),
        (scripts.Raw(DRIP, headers=JSON), "body"),
        (scripts.Raw((b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n', *DRIP), headers=SSE), "body"),
    ],
    ids=["silent", "drips", "drips in the middle"],
)
async def test_the_whole_call_may_take_only_so_long(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget, script: scripts.Script, phase: str, stream: bool
) -> None:
    upstream.queue(script)
    late = await fails(adapter, target(total_timeout_s=0.4 if phase == "sent" else 1.0), stream=stream)
    assert isinstance(late, UpstreamTimeout) and late.phase == phase
    assert await asyncio.to_thread(upstream.served[0].ended.wait, 60)
    assert upstream.served[0].outcome == "gone"


async def test_it_ends_a_call_that_nobody_is_reading(upstream: Upstream, target: MakeTarget) -> None:
    """A client that takes its time must not keep the provider at work for longer than the whole may take."""
    upstream.queue(scripts.Raw((b"x", *DRIP), headers=SSE))
    client = Client()
    response = await client.post(target(total_timeout_s=1.0), "/chat/completions", b"{}")
    assert await response.read()
    assert await asyncio.to_thread(upstream.served[0].ended.wait, 60)
    await asyncio.sleep(0.05)  # the connection's own end has been noticed, too
    with pytest.raises(UpstreamTimeout):
        while await response.read():
            pass
    await client.close()


async def test_connecting_counts(adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget) -> None:
    """TLS with a server that speaks none: it hangs until the connection's time is over, or the whole call's."""
    base_url = upstream.url.replace("http:", "https:")
    for limits in ({"connect_timeout_s": 0.2}, {"connect_timeout_s": 60, "total_timeout_s": 0.2}):
        late = await fails(adapter, target(base_url=base_url, **limits), stream=False)
        assert (late.status, late.phase) == (504, "connect")
    refused = await fails(adapter, target(base_url="http://127.0.0.1:1/v1"), stream=False)
    assert (refused.status, refused.phase) == (502, "connect")


async def test_a_provider_that_does_not_take_the_request_is_given_up() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    client = Client()
    async with serving(talk, first_byte_timeout_s=0.3) as target:
        with pytest.raises(UpstreamTimeout) as late:
            await client.post(target, "/chat", LARGE)
        assert late.value.phase == "sent"
        await client.close()


@pytest.mark.parametrize(
    ("script", "phase", "status"),
    [
        (scripts.drop, "sent", None),
        (scripts.Raw(headers=JSON, length=10, cut=True), "head", 200),
        (scripts.truncated(), "body", 200),
        (scripts.html(200), "body", None),
        (scripts.Raw((b"not JSON",), headers=JSON), "body", None),
        (scripts.error(500), "head", 500),
        (scripts.error(401), "head", 401),
    ],
)
async def test_a_fault_says_how_far_it_had_come(
    adapter: OpenAIAdapter,
    upstream: Upstream,
    target: MakeTarget,
    script: scripts.Script,
    phase: str,
    status: int | None,
) -> None:
    upstream.queue(script, script)
    for stream in (False, True):
        fault = await fails(adapter, target(), stream=stream)
        assert fault.phase == phase
        assert fault.upstream_status == status


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, UpstreamError), (429, RateLimited), (503, Unavailable), (500, UpstreamError), (408, UpstreamTimeout)],
)
async def test_a_status_is_enough_if_the_rest_does_not_come(
    adapter: OpenAIAdapter,
    upstream: Upstream,
    target: MakeTarget,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    kind: type[Exception],
) -> None:
    monkeypatch.setattr(responses, "ERROR_S", 0.2)
    headers = {**JSON, "retry-after": "7"}
    for script in (
        scripts.Raw((b'{"err',), status, headers, hang=True),
        scripts.Raw((b'{"err',), status, headers, length=50, cut=True),
        scripts.Raw((b"x" * 70_000,), status, headers),
    ):
        upstream.queue(script)
        with pytest.raises(kind) as caught:
            await adapter.complete(target(), REQUEST, FACE)
        fault: Any = caught.value
        assert fault.upstream_status == status
        if status in (429, 503):
            assert fault.headers["retry-after"] == "7"


async def test_an_error_of_the_clients_own_is_read_whole(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget
) -> None:
    upstream.queue(scripts.error(400, "bad " + "x" * 30_000))
    with pytest.raises(InvalidRequest) as caught:
        await adapter.complete(target(), REQUEST, FACE)
    assert caught.value.message.startswith("bad ") and caught.value.upstream_status == 400
