"""Makes channels, knows the open ones and how many there may be, and sweeps them for time-outs: one timer for all."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from django.conf import settings
from twisted.web import http

from gateway.server.channel import Channel
from gateway.telemetry import metrics

if TYPE_CHECKING:
    from gateway.server.daphne import Server
    from gateway.server.port import Port

SWEEP_SECONDS = 5.0
A_FEW = 4
LOOKING_COSTS = 20  # of the time at most one part for looking through all connections
IDLE_ENOUGH_SECONDS = 0.5  # not one that has just been answered: its client may be asking again


class Factory(http.HTTPFactory):
    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop, *, most: int = 65_536) -> None:
        super().__init__(timeout=None)
        self.server = server
        self.loop = loop
        self.most = most
        self.port: Port | None = None
        self._make_room_at = 0.0
        self.channels: set[Channel] = set()
        self.lines: dict[bytes, tuple[bytes, bytes]] = {}  # header lines seen before, parsed

    def buildProtocol(self, addr: object) -> Channel:
        return Channel(self)

    def startFactory(self) -> None:
        shortest = min(settings.STALL_SECONDS, settings.HEAD_SECONDS, settings.IDLE_SECONDS)
        self.sweep_seconds = min(SWEEP_SECONDS, shortest / 4)
        self._sweeper = self.loop.call_later(self.sweep_seconds, self._sweep)

    def stopFactory(self) -> None:
        pass  # channels outlive the listening socket while the server drains

    def log(self, request: object) -> None:
        pass  # the request's line is written by whoever answered it

    # ---- how many -------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        return len(self.channels) + len(self.server.connections)

    def has_room(self) -> bool:
        """For one connection more. If not, idle ones make room for it, soon."""
        if self.count < self.most:
            return True
        self.make_room()
        return False

    def make_room(self) -> None:
        """Close one in a hundred (at least a few), of those that have been idle for longest."""
        now = time.monotonic()
        if now < self._make_room_at:
            return
        idle = [channel for channel in self.channels if channel.idle_for(now) > IDLE_ENOUGH_SECONDS]
        idle.sort(key=lambda channel: channel.active)
        for channel in idle[: max(A_FEW, self.most // 100)]:
            channel.loseConnection()
        ended = time.monotonic()
        self._make_room_at = ended + (ended - now) * LOOKING_COSTS

    def forget(self, channel: Channel) -> None:
        self.channels.discard(channel)
        metrics.connections(len(self.channels))
        self.server.channel_closed()
        self.room_made()

    def room_made(self) -> None:
        if self.port is not None and self.port.paused and self.count < self.most:
            self.port.resume()

    def _sweep(self) -> None:
        now = time.monotonic()
        for channel in list(self.channels):
            channel.check_time(now)
        self._sweeper = self.loop.call_later(self.sweep_seconds, self._sweep)
