"""The desk's life in a server process: started before the first request, stopped after the last."""

from __future__ import annotations

import asyncio

from gateway.ledger import desk
from gateway.upstreams import registry


def start() -> None:
    desk.start()


async def stop() -> None:
    """Close the upstreams' connections, then write what the desk still has."""
    await registry.close_all()
    await asyncio.get_running_loop().run_in_executor(None, desk.stop)
