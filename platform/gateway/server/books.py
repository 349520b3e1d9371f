"""The life of the desk, the board of health and the live feed in a server process.

Started before the first request, stopped after the last.
"""

from __future__ import annotations

import asyncio

from gateway.console import feed
from gateway.endings import ended_requests
from gateway.failover.board import board
from gateway.ledger import desk
from gateway.server import observed
from gateway.upstreams import registry, tokens

_feeding: asyncio.Task[None] | None = None


def start(loop: asyncio.AbstractEventLoop) -> None:
    global _feeding
    tokens.warm()  # half a second, which the first request would otherwise wait
    observed.start(loop)
    desk.start()
    board.start(loop)
    _feeding = loop.create_task(feed.pump(ended_requests))


async def stop() -> None:
    """Close the upstreams' connections, say what is known of their health, then write what the desk still has."""
    if _feeding is not None:
        _feeding.cancel()
    await registry.close_all()
    await board.stop()
    await asyncio.get_running_loop().run_in_executor(None, desk.stop)
    await observed.stop()
