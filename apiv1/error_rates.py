"""The x-ratelimit headers of errors that no limit was asked for: a body of the wrong form, a model that is not there.

They are read, as those of /v1/models are, but a flood of errors must not become a flood of queries, nor a database
that is away another error. So the headers of a key are read once for all who wait for them, remembered for a second
or until a limit has counted something of the key here, and left out if they are not there in time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from apiv1.limits import rates_of
from apiv1.requests import ApiRequest
from gateway import pipeline, snapshots
from gateway.calls import Reload
from gateway.errors import GatewayError
from tenants.facts import Caller

log = logging.getLogger(__name__)

REMEMBERED_S = 1.0
LONGEST_S = 0.5  # that an error waits for its headers
KEYS = 10_000  # in memory
AT_ONCE = 32  # reads under way, of all keys: beyond, headers are left out
SHOWN = ("x-ratelimit-limit-requests", "x-ratelimit-limit-tokens")

Reading = asyncio.Task[dict[str, str]]


class ErrorRates:
    def __init__(self) -> None:
        self._known: OrderedDict[int, tuple[float, Reading]] = OrderedDict()  # by key, the oldest read first
        self._under_way: set[Reading] = set()

    async def add(self, request: HttpRequest, response: HttpResponseBase) -> None:
        """Put the headers on an error of a known key that has none. Never raises, but when the client leaves."""
        caller: Caller | None = getattr(request, "auth", None)
        if caller is None or response.status_code == 401:  # nobody, or no longer
            return
        if response.status_code < 400 or any(name in response for name in SHOWN):
            if self._known:
                self._known.pop(caller.key_id, None)  # what was remembered is of before this request
            return
        for name, value in (await self._of(request, caller)).items():  # type: ignore[arg-type]
            response[name] = value

    async def _of(self, request: ApiRequest, caller: Caller) -> dict[str, str]:
        now, loop = time.monotonic(), asyncio.get_running_loop()
        until, reading = self._known.get(caller.key_id, (0.0, None))
        if reading is None or reading.get_loop() is not loop or (reading.done() and now >= until):
            if len(self._under_way) >= AT_ONCE:
                return {}
            reading = self._read(loop, request, caller, now)
        # A client that leaves must not cancel the read that others wait for.
        return reading.result() if reading.done() else await asyncio.shield(reading)

    def _read(self, loop: asyncio.AbstractEventLoop, request: ApiRequest, caller: Caller, now: float) -> Reading:
        reading = loop.create_task(_read(caller, request.reload))
        self._under_way.add(reading)
        reading.add_done_callback(self._under_way.discard)
        self._known[caller.key_id] = now + REMEMBERED_S, reading
        self._known.move_to_end(caller.key_id)
        if len(self._known) > KEYS:
            self._known.popitem(last=False)
        return reading

    def forget(self) -> None:
        """For tests."""
        self._known.clear()
        self._under_way.clear()


async def _read(caller: Caller, reload: Reload) -> dict[str, str]:
    """Nothing for who has no limits, without asking anybody; nothing either if anything goes wrong."""
    try:
        async with asyncio.timeout(LONGEST_S):
            if not any(rule.shown_in_headers for rule in await snapshots.rules_of(caller)):
                return {}
            return await rates_of(await pipeline.ensure_fresh(caller, reload))
    except (GatewayError, TimeoutError):
        return {}
    except Exception:  # the error that the client is about to get is the one that counts
        log.warning("The limits of key %s could not be read for an error", caller.public_id, exc_info=True)
        return {}


error_rates = ErrorRates()
