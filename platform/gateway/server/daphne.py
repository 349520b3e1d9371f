"""The server: Daphne's, with our channels, a drain on SIGTERM and a life-cycle for the desk.

SIGTERM or SIGINT: stop accepting, close WebSockets and, in a second, idle connections, let running requests and
streams end within DRAIN_SECONDS, then cancel them (the pipeline books them), then stop the desk, which writes what it
still has. A second signal skips the wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.server import reactor as reactors

reactor = reactors.install()  # before Daphne is imported: it would install its own

from daphne import server as stock  # noqa: E402
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol  # noqa: E402
from twisted.logger import STDLibLogObserver, globalLogBeginner  # noqa: E402

from gateway.errors import STOPPED  # noqa: E402
from gateway.replies import running  # noqa: E402
from gateway.server import state  # noqa: E402
from gateway.server.exchange import Exchange  # noqa: E402
from gateway.server.factory import Factory  # noqa: E402
from gateway.server.port import Port  # noqa: E402

logger = logging.getLogger("gateway.server")

BACKLOG = 1024
CANCEL_SECONDS = 10  # for cancelled requests to be booked
SOCKET_SECONDS = 3
LOOK_SECONDS = 0.1
GOING_AWAY = 1001
# Requests in flight are all young, and nearly none of them is in a cycle: looking at 700 at a time, as Python
# does by default, costs 5 % of a request.
YOUNG_OBJECTS = 20_000


class WebSocket(WebSocketProtocol):
    def onClose(self, *how: Any) -> None:
        if hasattr(self, "server"):  # else its handshake failed, and nobody knows it
            super().onClose(*how)


class Server(stock.Server):
    def __init__(
        self,
        application: Callable[..., Awaitable[None]],
        *,
        host: str,
        port: int,
        fd: int | None = None,
        drain_seconds: float = 20,
        most_connections: int = 65_536,
        on_start: Callable[[], None] = lambda: None,
        on_stop: Callable[[], Awaitable[None]],
    ) -> None:
        """`on_start` is called in the loop, once it listens; `on_stop` after the last request."""
        super().__init__(application, endpoints=["unused"], server_name="", verbosity=1)
        self.host, self.port, self.fd = host, port, fd
        self.drain_seconds = drain_seconds
        self.on_start, self.on_stop = on_start, on_stop
        self.loop: asyncio.AbstractEventLoop = reactor._asyncioEventloop
        self.exchanges: set[Exchange] = set()
        self.connections: dict[Any, dict[str, Any]] = {}  # WebSockets; Daphne's own bookkeeping
        self.http_factory = Factory(self, self.loop, most=most_connections)
        self._signals = 0
        self._hurry = asyncio.Event()
        self._quiet = asyncio.Event()

    # ---- start -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until stopped. Raises OSError if the address cannot be listened on."""
        globalLogBeginner.beginLoggingTo([STDLibLogObserver("twisted")], redirectStandardIO=False)
        asyncio.set_event_loop(self.loop)
        self.ws_factory = WebSocketFactory(self, server="")
        self.ws_factory.protocol = WebSocket
        self.ws_factory.setProtocolOptions(
            autoPingTimeout=self.ping_timeout,
            allowNullOrigin=True,
            openHandshakeTimeout=self.websocket_handshake_timeout,
            maxMessagePayloadSize=self.websocket_max_message_size,
            maxFramePayloadSize=self.websocket_max_frame_size,
        )
        self.listener = self._listen()
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self.on_signal)
        reactor.callWhenRunning(self.on_start)
        reactor.callLater(1, self.application_checker)
        reactor.callLater(2, self.timeout_checker)
        gc.collect()
        gc.freeze()  # what start-up made lives as long as the process: never look at it again
        gc.set_threshold(YOUNG_OBJECTS, 20, 50)
        address = self.listener.getHost()
        logger.info("listening", extra={"host": address.host, "port": address.port, "pid": os.getpid()})
        reactor.run(installSignalHandlers=False)

    def _listen(self) -> Port:
        if self.fd is None:
            port = Port(self.port, self.http_factory, BACKLOG, self.host, reactor)
        else:
            with socket.socket(fileno=self.fd) as inherited:  # closed again: Twisted has a copy, and closes that
                inherited.setblocking(False)
                port = Port._fromListeningDescriptor(reactor, self.fd, inherited.family, self.http_factory)
        port.startListening()
        self.http_factory.port = port
        return port

    # ---- stop --------------------------------------------------------------------------------------------------

    def on_signal(self) -> None:
        self._signals += 1
        if self._signals == 1:
            self._draining = self.loop.create_task(self.drain())
        else:
            self._hurry.set()

    async def drain(self) -> None:
        state.draining = True
        logger.info("draining", extra={"running": len(self.exchanges), "seconds": self.drain_seconds})
        for step in (self._let_finish, self._cancel_rest, self.on_stop):
            try:
                await step()
            except Exception:
                logger.exception("A step of the drain failed")
        logger.info("stopped")
        reactor.stop()

    async def _let_finish(self) -> None:
        self.listener.take_waiting()
        await self.listener.stopListening().asFuture(self.loop)
        for channel in list(self.http_factory.channels):
            channel.drain()
        sockets = self._close_sockets()
        waits = [self.loop.create_task(self._hurry.wait()), self.loop.create_task(self._all_done())]
        await asyncio.wait(waits, timeout=self.drain_seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if sockets:  # their consumers leave their groups; autobahn drops a peer that does not answer in 1 s
            await asyncio.wait(sockets, timeout=SOCKET_SECONDS)

    def _close_sockets(self) -> set[asyncio.Future[Any]]:
        """Tell WebSockets to go; their applications."""
        for protocol in list(self.connections):
            if protocol.state == protocol.STATE_OPEN:
                protocol.sendCloseFrame(code=GOING_AWAY)  # sendClose() allows applications no 1001
            else:
                protocol.dropConnection(abort=True)
        futures = (details.get("application_instance") for details in self.connections.values())
        return {future for future in futures if future is not None and not future.done()}

    async def _all_done(self) -> None:
        """Until every answer has been taken and every client has gone. Those that were refused may linger."""
        channels = self.http_factory.channels
        while self.exchanges or any(not channel.refused for channel in channels):
            self._quiet.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), LOOK_SECONDS)
            now = time.monotonic()
            for channel in list(channels):
                channel.leave(now)
        await running.finished()

    async def _cancel_rest(self) -> None:
        tasks: set[asyncio.Future[Any]] = {exchange.task for exchange in self.exchanges if exchange.task}
        tasks |= self._close_sockets() | running.tasks
        for task in tasks:
            task.cancel(STOPPED)
        if tasks:
            logger.warning("cancelled", extra={"requests": len(tasks)})
            await asyncio.wait(tasks, timeout=CANCEL_SECONDS)
        for channel in list(self.http_factory.channels):
            channel.loseConnection()

    # ---- bookkeeping -------------------------------------------------------------------------------------------

    def exchange_ended(self) -> None:
        if state.draining:
            self._quiet.set()

    def channel_closed(self) -> None:
        if state.draining:
            self._quiet.set()

    def protocol_connected(self, protocol: Any) -> None:
        self.connections[protocol] = {"connected": self.loop.time()}

    def protocol_disconnected(self, protocol: Any) -> None:
        if protocol in self.connections:  # an Exchange that became a WebSocket is not
            super().protocol_disconnected(protocol)
            self.http_factory.room_made()
