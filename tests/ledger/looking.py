"""How the desk's tests look into the database while it works."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection, connections

from gateway.ledger.items import Ending, Order
from gateway.upstreams.base import Usage

MakeOrder = Callable[..., Order]
PATIENCE_SECONDS = 60
WHOLE = Ending("completed", Usage(input_tokens=1000, cached_input_tokens=0, output_tokens=500))


async def db(function: Callable[..., Any], *args: Any) -> Any:
    return await sync_to_async(function, thread_sensitive=True)(*args)


async def until(condition: Callable[[], bool], otherwise: str = "it did not come to pass") -> None:
    """Wait for what another thread does."""
    by = time.monotonic() + PATIENCE_SECONDS
    while not await db(condition):
        assert time.monotonic() < by, otherwise
        await asyncio.sleep(0.02)


def other_connection() -> Any:
    """A session of somebody else's: an admin's, a backup's."""
    other = connections["default"].copy()
    other.settings_dict = {**other.settings_dict, "NAME": connection.settings_dict["NAME"]}
    other.ensure_connection()
    return other
