"""A call that failed is gone when nobody holds it any more: nothing of it waits for the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterator
from weakref import ref

import pytest

from gateway.errors import UpstreamError
from gateway.upstreams.base import Face, Target
from gateway.upstreams.openai import OpenAIAdapter
from gateway.upstreams.relay import Relay
from tests.upstream import Upstream
from tests.upstream_scripts import Raw, Script, Stream

REQUEST = {"messages": [{"role": "user", "content": "Hello"}]}
NONSENSE = Raw((b"data: {not JSON" + b"x" * 10_000 + b"\n\n",), headers={"content-type": "text/event-stream"})


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def failed(doing: Awaitable[object]) -> bool:
    """pytest.raises would keep the traceback, and all that it holds."""
    try:
        await doing
    except UpstreamError:
        return True
    return False


async def read(relay: Relay) -> None:
    async for _ in relay:
        pass


@pytest.mark.parametrize("script", [Stream(cut_after=2), Stream(error_after=2)], ids=["cut", "an error event"])
async def test_a_stream_that_broke_is_gone(
    upstream: Upstream, adapter: OpenAIAdapter, target: Callable[..., Target], script: Script
) -> None:
    upstream.script("acme", script)
    relay = await adapter.open_stream(target(upstream_model="acme"), REQUEST, Face("x", 1, "m"))
    assert await failed(read(relay))
    gone = ref(relay)
    del relay
    assert gone() is None


async def test_it_never_ends_well_afterwards(
    upstream: Upstream, adapter: OpenAIAdapter, target: Callable[..., Target]
) -> None:
    upstream.script("acme", Stream(cut_after=2))
    relay = await adapter.open_stream(target(upstream_model="acme"), REQUEST, Face("x", 1, "m"))
    assert [await failed(read(relay)) for _ in range(3)] == [True] * 3


async def test_one_that_never_began_is_gone(
    upstream: Upstream, adapter: OpenAIAdapter, target: Callable[..., Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ref[Relay]] = []
    prime = Relay.prime

    async def noted(self: Relay) -> None:
        made.append(ref(self))
        await prime(self)

    monkeypatch.setattr(Relay, "prime", noted)
    upstream.script("acme", NONSENSE)
    assert await failed(adapter.open_stream(target(upstream_model="acme"), REQUEST, Face("x", 1, "m")))
    (gone,) = made
    assert gone() is None
