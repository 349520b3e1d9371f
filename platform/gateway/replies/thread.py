"""The one thread in which kept answers are written and read.

Not the reader of `gateway.snapshots`, for which requests of all tenants wait: an answer may have megabytes. It has a
connection of its own, opened by the first request with the header. Of each tenant it has one piece of work at a time,
so that the crowd of one waits for itself and not the others for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from gateway import snapshots

T = TypeVar("T")

threads = ThreadPoolExecutor(1, thread_name_prefix="counterfoil-replies")


class _Queue:
    """Of one tenant: whoever has the lock is in the thread, or next after other tenants."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


_queues: dict[int, _Queue] = {}  # of tenants that have work here now


async def run(tenant_id: int, function: Callable[..., T], *args: object) -> T:
    """Raises Unavailable if the database is away."""
    async with _turn(tenant_id):
        return await snapshots.read(function, *args, thread=threads)


@asynccontextmanager
async def _turn(tenant_id: int) -> AsyncIterator[None]:
    queue = _queues.setdefault(tenant_id, _Queue())
    queue.users += 1
    try:
        async with queue.lock:
            yield
    finally:
        queue.users -= 1
        if not queue.users:
            del _queues[tenant_id]
