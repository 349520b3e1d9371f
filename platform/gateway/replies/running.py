"""Work that goes on without the client that asked for it. The server waits for it when it drains, as for requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from gateway.errors import GatewayError

log = logging.getLogger(__name__)

T = TypeVar("T")

tasks: set[asyncio.Task[Any]] = set()


def start(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task of its own; the event loop alone would forget it."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(_ended)
    return task


async def finished() -> None:
    """Returns when nothing runs."""
    while tasks:
        await asyncio.wait(list(tasks))


def _ended(task: asyncio.Task[Any]) -> None:
    tasks.discard(task)
    # Told to whoever waits for it; if nobody does, the client has left.
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, GatewayError):
        log.error("Work without its client failed", exc_info=error)
