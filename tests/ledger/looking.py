"""How the desk's tests look into the database while it works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection, connections

from gateway.ledger.items import Ending, Order
from gateway.upstreams.base import Usage

MakeOrder = Callable[..., Order]
WHOLE = Ending("completed", Usage(input_tokens=1000, cached_input_tokens=0, output_tokens=500))


async def db(function: Callable[..., Any], *args: Any) -> Any:
    return await sync_to_async(function, thread_sensitive=True)(*args)


async def until(condition: Callable[[], bool], tries: int = 400) -> None:
    """Wait for what another thread does; bounded by count."""
    for _ in range(tries):
        if await db(condition):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come to pass")


def other_connection() -> Any:
    """A session of somebody else's: an admin's, a backup's."""
    other = connections["default"].copy()
    other.settings_dict = {**other.settings_dict, "NAME": connection.settings_dict["NAME"]}
    other.ensure_connection()
    return other
