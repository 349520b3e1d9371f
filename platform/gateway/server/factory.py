"""Makes channels, knows the open ones, and sweeps them for time-outs: one timer for all of them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from twisted.web import http

from gateway.server.channel import Channel
from gateway.telemetry import metrics

if TYPE_CHECKING:
    from gateway.server.daphne import Server

SWEEP_SECONDS = 5


class Factory(http.HTTPFactory):
    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(timeout=None)
        self.server = server
        self.loop = loop
        self.channels: set[Channel] = set()
        self.lines: dict[bytes, tuple[bytes, bytes]] = {}  # header lines seen before, parsed

    def buildProtocol(self, addr: object) -> Channel:
        return Channel(self)

    def startFactory(self) -> None:
        self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep)

    def stopFactory(self) -> None:
        pass  # channels outlive the listening socket while the server drains

    def log(self, request: object) -> None:
        pass  # the request's line is written by whoever answered it

    def forget(self, channel: Channel) -> None:
        self.channels.discard(channel)
        metrics.connections(len(self.channels))
        self.server.channel_closed()

    def _sweep(self) -> None:
        now = time.monotonic()
        for channel in list(self.channels):
            channel.check_time(now)
        self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep)
