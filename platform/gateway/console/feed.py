"""The live feed: ended requests of every server process, in batches, to whoever watches.

An event is a JSON object with what one line of the page shows; never a prompt, an answer or a secret:
    request_id, at (seconds since 1970), tenant (slug), key (name), model, status, tokens, ms
The feed is a view, not a record: what it drops when things go wrong is in the ledger all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

from channels.layers import get_channel_layer

GROUP = "feed"
MOST = 200  # events in a message; of a bigger batch the newest are shown
PAUSE_SECONDS = 0.5

log = logging.getLogger(__name__)

Event = dict[str, Any]


async def publish(events: list[Event]) -> None:
    """Send one message for the batch."""
    layer = get_channel_layer()
    if layer is None or not events:
        return
    await layer.group_send(GROUP, {"type": "feed.events", "events": events[-MOST:], "left_out": len(events[:-MOST])})


async def pump(ended: deque[Event]) -> None:
    """Publish what the pipeline appends to `ended`, for as long as this server process lives."""
    failing = False
    while True:
        await asyncio.sleep(PAUSE_SECONDS)
        batch = [ended.popleft() for _ in range(len(ended))]
        try:
            await publish(batch)
            failing = failing and not batch
        except Exception:
            if not failing:  # one line an outage, not two a second
                log.warning("The live feed cannot be published; it goes on when Valkey is back.", exc_info=True)
            failing = True
