"""The desk's life in a server process: started before the first request, stopped after the last; the live feed's."""

from __future__ import annotations

import asyncio

from gateway.console import feed
from gateway.ledger import desk
from gateway.pipeline import ended_requests
from gateway.server import observed
from gateway.upstreams import registry, tokens

_feeding: asyncio.Task[None] | None = None


def start(loop: asyncio.AbstractEventLoop) -> None:
    global _feeding
    tokens.warm()  # half a second, which the first request would otherwise wait
    observed.start(loop)
    desk.start()
    _feeding = loop.create_task(feed.pump(ended_requests))


async def stop() -> None:
    """Close the upstreams' connections, then write what the desk still has."""
    if _feeding is not None:
        _feeding.cancel()
    await registry.close_all()
    await asyncio.get_running_loop().run_in_executor(None, desk.stop)
    await observed.stop()
