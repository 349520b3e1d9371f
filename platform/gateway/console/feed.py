"""The live feed's channel: whoever knows of ended requests publishes them here, consumers pass them on.

An event is a JSON object with what one line of the page shows; never a prompt, an answer or a secret:
    request_id, ended_at (ISO 8601), tenant (slug), key (public id), model, status, http_status, error_code,
    input_tokens, output_tokens, charge (decimal string or null: unpriced), currency, duration_ms
"""

from __future__ import annotations

from typing import Any

from channels.layers import get_channel_layer

GROUP = "feed"
MOST = 200  # events in a message; of a bigger batch the newest are shown


async def publish(events: list[dict[str, Any]]) -> None:
    """Send one message for the batch. The feed is a view, not a record: what it misses is in the ledger."""
    layer = get_channel_layer()
    if layer is None or not events:
        return
    await layer.group_send(GROUP, {"type": "feed.events", "events": events[-MOST:], "left_out": len(events[:-MOST])})
