"""Work that goes on after its request's connection has ended: a drain waits for it, then cancels it.

    task = background.start(produce(), name="reply")

Knows nothing of the server, so that anything below it may start such work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

tasks: set[asyncio.Task[Any]] = set()  # a reference is kept here: asyncio itself would let them be collected


def start(work: Coroutine[Any, Any, Result], *, name: str) -> asyncio.Task[Result]:
    """A task of the running loop. It is cancelled when a drain's time is up: book what there is and end."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task
