"""Clients in the test's own loop, each request with a serial number of its own, for tests that say what is asked."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager

from tests.faults.load import Sent
from tests.faults.wire import Goodbye, Wire

HEALTHY = ("words-12", "words-40-every-5", "slow-120", "merged-9-every-2")
_numbers = itertools.count(500_000)  # of a run: the database is asked for them


class Clients:
    def __init__(self, port: int, key: str) -> None:
        self.port, self.key = port, key
        self.sent: list[Sent] = []

    async def ask(
        self,
        model: str,
        *,
        stream: bool = True,
        goodbye: Goodbye | None = None,
        wire: Wire | None = None,
        **headers: str,
    ) -> Sent:
        """On a new connection, unless one is given. Names of headers with underscores for hyphens."""
        number = next(_numbers)
        sent = Sent(number, model, stream, bool(number % 2), goodbye or Goodbye())
        self.sent.append(sent)
        return await self.again(sent, wire, **headers)

    async def again(self, sent: Sent, wire: Wire | None = None, **headers: str) -> Sent:
        wire = wire or Wire(self.port, keep=False)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        fields |= {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        sent.reply = await wire.post(sent.body, fields, sent.goodbye)
        sent.ended_at = time.monotonic()
        return sent

    @asynccontextmanager
    async def traffic(self, count: int = 4, models: Sequence[str] = HEALTHY) -> AsyncIterator[list[Sent]]:
        """Healthy requests of `count` clients while the block runs: half of them on connections that they keep."""
        stopping, found = asyncio.Event(), list[Sent]()
        tasks = [asyncio.create_task(self._client(number, models, stopping, found)) for number in range(count)]
        try:
            yield found
        finally:
            stopping.set()
            await asyncio.gather(*tasks)

    async def _client(self, number: int, models: Sequence[str], stopping: asyncio.Event, found: list[Sent]) -> None:
        draw, wire = random.Random(number), Wire(self.port, keep=number % 2 == 0)
        while not stopping.is_set():
            sent = await self.ask(draw.choice(models), stream=draw.random() < 0.5, wire=wire)
            found.append(sent)
            await asyncio.sleep(draw.uniform(0, 0.06))
        wire.hang_up()


def all_of(requests: Sequence[Awaitable[Sent]]) -> asyncio.Future[list[Sent]]:
    """At once; they run whether or not this is awaited yet."""
    return asyncio.gather(*requests)
