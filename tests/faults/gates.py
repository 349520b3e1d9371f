"""Answers that do not end before they may: what is to be in flight at a signal is so on a slow machine, too."""

from __future__ import annotations

import threading

from tests.faults.wrongs import DONE, SSE
from tests.upstream_scripts import Answer, Exchange, Stream, words

BEFORE = 5  # events of a stream


class Gate:
    """A script of so many words. A stream has begun when it waits, a whole answer has not."""

    def __init__(self, count: int, interval: float = 0.005) -> None:
        self.count, self.interval = count, interval
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    async def __call__(self, exchange: Exchange) -> None:
        if not exchange.body.get("stream"):
            await self._wait(exchange)
            return await Answer("".join(words(self.count)))(exchange)
        await exchange.head(200, SSE)
        for number, (event, usage) in enumerate(Stream(words(self.count)).events(exchange)):
            if number == BEFORE:
                await self._wait(exchange)
            await exchange.write(event)
            exchange.events, exchange.usage = number + 1, usage or exchange.usage
            await exchange.pause(self.interval)
        await exchange.write(DONE)
        await exchange.end()

    async def _wait(self, exchange: Exchange) -> None:
        while not self._opened.is_set():
            await exchange.pause(0.1)
