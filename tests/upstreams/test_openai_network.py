"""gateway.upstreams.client, by way of the adapter: connections, time-outs, refused addresses, cancellation."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import GatewayError, UpstreamError, UpstreamTimeout
from gateway.upstreams import addresses
from gateway.upstreams.base import Target
from gateway.upstreams.openai import OpenAIAdapter
from tests import upstream_scripts as scripts
from tests.upstream import Upstream
from tests.upstreams.conftest import FACE, REQUEST

MakeTarget = Callable[..., Target]


async def test_connections_are_kept(adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget) -> None:
    before = upstream.connections
    for _ in range(5):
        await adapter.complete(target(), REQUEST, FACE)
    assert upstream.connections == before + 1


async def test_a_silent_provider_is_a_timeout(adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget) -> None:
    upstream.queue(scripts.hang)
    with pytest.raises(UpstreamTimeout) as caught:
        await adapter.complete(target(read_timeout_s=0.2), REQUEST, FACE)
    assert caught.value.phase == "sent"
    assert await asyncio.to_thread(upstream.served[0].ended.wait, 60)


@pytest.mark.parametrize(
    "changes",
    [
        {"base_url": "http://127.0.0.1:1/v1"},
        {"base_url": "http://169.254.169.254/v1"},
        {"base_url": "gopher://127.0.0.1/v1"},
        {"base_url": ""},
        {"credential": "new\nline"},
    ],
)
async def test_what_cannot_be_reached_says_so(
    adapter: OpenAIAdapter, target: MakeTarget, changes: dict[str, Any]
) -> None:
    with pytest.raises(UpstreamError) as caught:
        await adapter.complete(target(**changes), REQUEST, FACE)
    assert caught.value.phase == "connect"
    assert "127.0.0.1" not in caught.value.message and "localhost" not in caught.value.message


async def test_a_name_that_does_not_resolve_says_so(
    adapter: OpenAIAdapter, target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(*_: Any, **__: Any) -> list[dict[str, Any]]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("aiohttp.ThreadedResolver.resolve", resolve)
    with pytest.raises(UpstreamError) as caught:
        await adapter.complete(target(base_url="http://api.example.com/v1"), REQUEST, FACE)
    assert caught.value.phase == "connect" and "example" not in caught.value.message


async def test_tls_that_fails_says_so(adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget) -> None:
    with pytest.raises(UpstreamError) as caught:
        await adapter.complete(
            target(base_url=upstream.url.replace("http:", "https:"), connect_timeout_s=0.3), REQUEST, FACE
        )
    assert caught.value.phase == "connect"


async def test_a_name_that_resolves_to_a_refused_address_is_not_called(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(*_: Any, **__: Any) -> list[dict[str, Any]]:
        return [
            {
                "hostname": "api.example.com",
                "host": "127.0.0.1",
                "port": upstream.port,
                "family": 2,
                "proto": 6,
                "flags": 0,
            }
        ]

    addresses.configure(allow_private=True, allow_loopback=False)
    monkeypatch.setattr("aiohttp.ThreadedResolver.resolve", resolve)
    with pytest.raises(UpstreamError) as caught:
        await adapter.complete(target(base_url=f"http://api.example.com:{upstream.port}/v1"), REQUEST, FACE)
    assert caught.value.phase == "connect"
    assert upstream.served == []


@pytest.mark.parametrize(
    "script",
    [scripts.hang, scripts.Answer(delay=5.0), scripts.Raw((b"{", 5.0), headers={"content-type": "application/json"})],
)
async def test_cancelling_closes_the_connection(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget, script: scripts.Script
) -> None:
    upstream.queue(script)
    task = asyncio.create_task(adapter.complete(target(), REQUEST, FACE))
    while not upstream.served:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(upstream.served[0].ended.wait, 60)
    assert upstream.served[0].outcome == "gone"


async def test_only_gateway_errors_come_out(adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget) -> None:
    for status in (*range(300, 309), *range(400, 430), 451, *range(500, 530)):
        upstream.queue(scripts.Raw((b"\x00odd",), status=status))
        with pytest.raises(GatewayError) as caught:
            await adapter.complete(target(), REQUEST, FACE)
        assert caught.value.status in (400, 429, 502, 503, 504)
