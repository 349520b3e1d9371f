"""The listening socket, which several processes may share.

Twisted's Port would accept a whole burst at once (and leave nothing to the other processes), and closes every
connection that waits when descriptors run out. This one takes a few at a time, with a rest in between (of 64 at
once two processes took 54 and 10 without it, 34 and 30 with), and none while the process is full: they wait in the
kernel's queue, or another process takes them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp

if TYPE_CHECKING:
    from gateway.server.factory import Factory

logger = logging.getLogger("gateway.server")

AT_ONCE = 4  # accepted in one turn of the loop
REST_SECONDS = 0.001  # after that: a burst is for the other processes, too, who need a moment to wake up
MOST_AT_THE_END = 2048
RETRY_SECONDS = 0.1  # after an error that another moment may cure
SAY_EVERY_SECONDS = 60
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Port(tcp.Port):
    factory: Factory
    paused = False
    _resumer: asyncio.TimerHandle | None = None
    _said_at = float("-inf")

    def doRead(self) -> None:
        before = self.sessionno
        self._accept(AT_ONCE)
        if self.sessionno > before and not self.paused:
            self._rest(REST_SECONDS)

    def take_waiting(self) -> None:
        """All that the kernel has accepted for us: nobody may be left to take them once we stop."""
        self._accept(MOST_AT_THE_END)

    def _accept(self, most: int) -> None:
        for _ in range(most):
            if not self.factory.has_room():
                self.pause("connections")
                return
            try:
                client, address = self.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in SCARCE:
                    self.factory.make_room()
                    self.pause(errno.errorcode[error.errno])
                    return
                continue  # the client has left already, or a firewall refused it
            self._serve(client, address)

    def _serve(self, client: socket.socket, address: Any) -> None:
        try:
            protocol = self.factory.buildProtocol(self._buildAddr(address))
            self.sessionno += 1
            transport = self.transport(client, protocol, address, self, self.sessionno, self.reactor)
            protocol.makeConnection(transport)
        except Exception:
            logger.exception("A connection could not be served")
            client.close()

    def pause(self, reason: str) -> None:
        """Accept nothing until somebody leaves, or a moment has passed."""
        now = time.monotonic()
        if now - self._said_at > SAY_EVERY_SECONDS:
            self._said_at = now
            logger.warning("full", extra={"reason": reason, "connections": self.factory.count})
        self._rest(RETRY_SECONDS)

    def _rest(self, seconds: float) -> None:
        self.paused = True
        self.stopReading()
        if self._resumer is None:
            self._resumer = self.factory.loop.call_later(seconds, self.resume)

    def resume(self) -> None:
        if self._resumer is not None:
            self._resumer.cancel()
            self._resumer = None
        if self.paused and self.connected:
            self.paused = False
            self.startReading()

    def stopListening(self) -> Any:
        self.paused = False  # nothing may start it again
        return super().stopListening()
