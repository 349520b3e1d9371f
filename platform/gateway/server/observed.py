"""What watches a server process: the numbers it shares with its neighbours, the port of /metrics, the traces."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from django.conf import settings

from gateway.telemetry import listener, traces
from gateway.telemetry.gathering import gather
from gateway.telemetry.listener import Listener
from gateway.telemetry.slots import slots

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0

_listening: Listener | None = None
_retrying: asyncio.TimerHandle | None = None


def start(loop: asyncio.AbstractEventLoop) -> None:
    """Never keeps the server from serving: what cannot be done is logged."""
    if settings.METRICS_DIR:
        try:
            slots.share(Path(settings.METRICS_DIR))
            gather()  # tidies up after dead neighbours, where nobody ever looks
        except OSError as error:
            log.error("METRICS_DIR cannot be used: the metrics are of this process alone (%s)", error)
    if settings.METRICS_PORT:
        _listen(loop)
    traces.start()


def _listen(loop: asyncio.AbstractEventLoop, *, again: bool = False) -> None:
    """Where a predecessor that drains has the port still: as soon as it is free."""
    global _listening, _retrying
    try:
        _listening = listener.start(
            settings.METRICS_HOST, settings.METRICS_PORT, beside_others=slots.folder is not None
        )
    except OSError as error:
        if not again:
            log.warning("METRICS_PORT cannot be listened on, and is tried again and again (%s)", error)
        _retrying = loop.call_later(RETRY_SECONDS, lambda: _listen(loop, again=True))


async def stop() -> None:
    """After the last request. Waits for the spans that have not been sent, for some seconds at most."""
    global _listening
    if _retrying is not None:
        _retrying.cancel()
    listening, _listening = _listening, None
    if listening is not None:
        await asyncio.to_thread(listening.stop)
    await asyncio.to_thread(traces.stop)
