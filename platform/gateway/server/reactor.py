"""Twisted's asyncio reactor on our event loop. Import this before anything of Twisted's or Daphne's.

Twisted wraps every event of a descriptor in a logging context (`callWithLogger`), for 5 to 10 µs each; nothing
here uses that context. An exception in a protocol still closes its connection and is logged: `_readOrWrite`
of the base class does both.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.main import installReactor


class Reactor(AsyncioSelectorReactor):
    def addReader(self, reader: Any) -> None:
        if reader not in self._readers:
            self._asyncioEventloop.add_reader(reader.fileno(), self._readOrWrite, reader, True)
            self._readers[reader] = reader.fileno()

    def addWriter(self, writer: Any) -> None:
        if writer not in self._writers:
            self._asyncioEventloop.add_writer(writer.fileno(), self._readOrWrite, writer, False)
            self._writers[writer] = writer.fileno()


def install() -> Reactor:
    """The process's reactor, on a new event loop that becomes the current one. Idempotent."""
    installed = sys.modules.get("twisted.internet.reactor")
    if isinstance(installed, Reactor):
        return installed
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    reactor = Reactor(loop)
    installReactor(reactor)
    return reactor
