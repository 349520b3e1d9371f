"""Protocol -> adapter, one instance per event loop. A new protocol is one file, and one line here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from weakref import WeakKeyDictionary

from gateway.upstreams.anthropic import AnthropicAdapter
from gateway.upstreams.azure import AzureAdapter
from gateway.upstreams.base import Adapter
from gateway.upstreams.echo import EchoAdapter
from gateway.upstreams.gemini import GeminiAdapter
from gateway.upstreams.openai import OpenAIAdapter

ADAPTERS: dict[str, Callable[[], Adapter]] = {
    "openai": OpenAIAdapter,
    "azure": AzureAdapter,
    "anthropic": AnthropicAdapter,
    "gemini": GeminiAdapter,
    "echo": EchoAdapter,
}

# A pool of connections belongs to the loop that opened them; the map forgets loops that are gone.
_adapters: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Adapter]] = WeakKeyDictionary()


def known_protocols() -> tuple[str, ...]:
    return tuple(ADAPTERS)


def adapter_for(protocol: str) -> Adapter:
    """The running loop's adapter. Raises KeyError for a protocol that nobody speaks."""
    loop = asyncio.get_running_loop()
    mine = _adapters.get(loop)
    if mine is None:
        mine = _adapters[loop] = {}
    adapter = mine.get(protocol)
    if adapter is None:
        adapter = mine[protocol] = ADAPTERS[protocol]()
    return adapter


async def close_all() -> None:
    """Release what the running loop's adapters hold; they open again when they are used."""
    for adapter in _adapters.pop(asyncio.get_running_loop(), {}).values():
        await adapter.close()
