"""The one thread in which kept answers are written and read.

Not the reader of `gateway.snapshots`, for which requests of all tenants wait: an answer may have megabytes. It has a
connection of its own, opened by the first request with the header.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from gateway import snapshots

T = TypeVar("T")

threads = ThreadPoolExecutor(1, thread_name_prefix="counterfoil-replies")


async def run(function: Callable[..., T], *args: object) -> T:
    """Raises Unavailable if the database is away."""
    return await snapshots.read(function, *args, thread=threads)
