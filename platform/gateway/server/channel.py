"""A TCP connection that speaks HTTP/1.x: limits, time-outs, refusals, back-pressure.

Twisted's HTTPChannel parses. This subclass adds what it lacks: a limit on bodies that holds without reading
them, answers in OpenAI's form to malformed requests, a lingering close (closing a socket with unread input
resets it, and the client never sees the answer), `drained()` for writers, and one sweep over all connections
instead of two timers per request.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from django.conf import settings
from twisted.protocols.basic import LineReceiver
from twisted.web import http

from apiv1.errors import body_too_large
from gateway.errors import GatewayError
from gateway.logs import RequestLog
from gateway.server import envelope, unsent
from gateway.server.exchange import Exchange
from gateway.server.refusals import refusal
from gateway.telemetry import metrics

if TYPE_CHECKING:
    from gateway.server.factory import Factory

RECEIVE_SECONDS = 60  # without a byte, in the middle of a request
BODY_GRACE_SECONDS = 30  # before a body must come at BODY_BYTES_PER_SECOND
LINGER_SECONDS = 10
LEAVE_SECONDS = 1.0  # in a drain: for a request that is on its way to a connection which looks idle to us

# Header lines that are remembered: none that carries a secret or decides about the body's length.
UNCACHED = frozenset({b"Authorization", b"Cookie", b"Proxy-Authorization", b"Content-Length", b"Transfer-Encoding"})
LONGEST_LINE, MOST_LINES = 200, 1000
LONGEST_NUMBER = 100  # digits of a length


class Channel(http.HTTPChannel):
    requestFactory = Exchange
    maxHeaders = 200
    totalHeadersSize = 65_536  # as nginx's 4 x 16k; long cookies and tracing headers fit
    MAX_LENGTH = 65_536

    factory: Factory
    requests: list[Exchange]
    draining = False
    refused = False
    head_started = 0.0
    body_due, body_seen = 0.0, 0  # until when more has to come, and what had come when that was counted

    def __init__(self, factory: Factory) -> None:
        super().__init__()
        self.factory = factory
        self.active = time.monotonic()
        self.taking = unsent.Taking(self.active)
        self._drained: asyncio.Future[None] | None = None

    # ---- connection ---------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        self.factory.channels.add(self)
        metrics.connections(len(self.factory.channels))
        self.peer, self.local = self.transport.getPeer(), self.transport.getHost()
        if hasattr(self.peer, "port"):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)  # a client that vanished without a FIN
            unsent.bound(self.transport)
        self._networkProducer = self.transport
        self.transport.registerProducer(self, True)

    def connectionLost(self, reason: Any) -> None:
        self.factory.forget(self)
        for exchange in self.requests:
            exchange.connectionLost(reason)
        self._wake()

    @property
    def busy(self) -> bool:
        """A request is arriving or being answered."""
        return bool(self.requests) and not self.refused

    def dataReceived(self, data: bytes) -> None:
        self.active = time.monotonic()
        if self.refused:
            return  # lingering: what the client still sends is read and dropped
        if not self.requests and not self.head_started:
            self.head_started = self.active
        if self.line_mode and not self._buffer and not self._busyReceiving:
            data = self._take_head(data)
        if data and not self.refused:
            LineReceiver.dataReceived(self, data)

    # ---- reading a request --------------------------------------------------------------------------------

    def _take_head(self, data: bytes) -> bytes:
        """Read a whole head at once; returns what follows. LineReceiver would copy all the rest for every line."""
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end or len(head) > self.totalHeadersSize:
            return data
        self._busyReceiving = True
        try:
            receive = super().lineReceived
            for line in (*head.split(b"\r\n"), b""):
                if not self.refused:
                    receive(line)
        finally:
            self._busyReceiving = False
        return rest

    def lineReceived(self, line: bytes) -> None:
        if not self.refused:
            super().lineReceived(line)

    def rawDataReceived(self, data: bytes) -> None:
        if not self.refused:
            super().rawDataReceived(data)

    def headerReceived(self, line: bytes) -> bool:
        """Clients send the same lines again and again: one parsed before is valid, and says the same."""
        known = self.factory.lines.get(line)
        if known is None:
            return self._parse_header(line)
        name, value = known
        self.requests[-1].requestHeaders._rawHeaders.setdefault(name, []).append(value)
        self._receivedHeaderCount += 1
        if self._receivedHeaderCount > self.maxHeaders:
            self._respondToBadRequestAndDisconnect()
            return False
        return True

    def _parse_header(self, line: bytes) -> bool:
        if not super().headerReceived(line):
            return False
        # The last name added is this line's, unless it was there before.
        name, values = next(reversed(self.requests[-1].requestHeaders._rawHeaders.items()))
        if name in UNCACHED:
            return True
        first = len(values) == 1 and name.lower() == line.partition(b":")[0].lower()
        if first and len(line) < LONGEST_LINE and len(self.factory.lines) < MOST_LINES:
            self.factory.lines[line] = (name, values[0])
        return True

    def _maybeChooseTransferDecoder(self, header: bytes, data: bytes) -> bool:
        """Python refuses to read a number of more than 4300 digits."""
        if header == b"Content-Length" and len(data) > LONGEST_NUMBER:
            return bool(self._failChooseTransferDecoder())
        return bool(super()._maybeChooseTransferDecoder(header, data))

    def lineLengthExceeded(self, line: bytes) -> None:
        self.refuse(envelope.for_status(431))

    def checkPersistence(self, request: Exchange, version: bytes) -> bool:
        values = request.requestHeaders._rawHeaders.get(b"Connection", ())
        close = any(token.strip().lower() == b"close" for value in values for token in value.split(b","))
        return version == b"HTTP/1.1" and not close and not self.draining

    def allHeadersReceived(self) -> None:
        exchange = self.requests[-1]
        self.head_started, self.body_due, self.body_seen = 0.0, time.monotonic() + BODY_GRACE_SECONDS, 0
        self.persistent = self.checkPersistence(exchange, self._version)
        if self.length is not None and self.length > settings.MAX_BODY_BYTES:
            self.refuse(body_too_large(self.length))
            return
        expect = exchange.requestHeaders._rawHeaders.get(b"Expect")
        if expect and expect[0].lower() == b"100-continue" and self._version == b"HTTP/1.1":
            self._send100Continue()

    def allContentReceived(self) -> None:
        if not self.refused:
            super().allContentReceived()

    # ---- refusing ------------------------------------------------------------------------------------------

    def _respondToBadRequestAndDisconnect(self) -> None:
        too_many = self._receivedHeaderSize > self.totalHeadersSize or self._receivedHeaderCount > self.maxHeaders
        self.refuse(envelope.for_status(431 if too_many else 400))

    def refuse(self, error: GatewayError) -> None:
        """Answer a request that no application will see, then close once the client has stopped sending."""
        if self.refused or self.transport.disconnecting:
            return
        self.refused = True
        exchange = self.requests[-1] if self.requests else None
        if exchange is not None:
            exchange.forget_body()
        if exchange is not None and exchange.method_known:
            method, target = exchange.method, exchange.path
        else:
            method, target = getattr(self, "_command", b""), getattr(self, "_path", b"")
        log = RequestLog(method.decode("latin1"), target.partition(b"?")[0].decode("latin1"))
        origins = exchange.requestHeaders._rawHeaders.get(b"Origin") if exchange is not None else None
        self.transport.write(refusal(error, log, origins[0] if origins else None))
        self.transport.loseWriteConnection()
        self.factory.loop.call_later(LINGER_SECONDS, self.abort)
        log.error_code = error.code or error.type
        log.write(error.status)

    def abort(self) -> None:
        if not self.transport.disconnected:
            self.transport.abortConnection()

    # ---- writing ---------------------------------------------------------------------------------------------

    def push(self, data: bytes) -> None:
        """Write now if the socket takes it, without a turn of the loop and two calls of epoll_ctl."""
        transport = self.transport
        if transport.dataBuffer or transport._tempDataBuffer or not transport.connected:
            transport.write(data)
            return
        try:
            sent = transport.socket.send(data)
        except OSError:
            sent = 0  # full, or broken: then the reactor finds out and closes
        if sent < len(data):
            transport.write(data[sent:] if sent else data)

    def resumeProducing(self) -> None:
        super().resumeProducing()
        self._wake()

    @property
    def full(self) -> bool:
        return bool(self._waitingForTransport)

    @property
    def behind(self) -> bool:
        """The client has not taken all that was written."""
        return bool(self.transport.dataBuffer or self.transport._tempDataBuffer)

    async def drained(self) -> None:
        """Until the client has taken what was written, or left."""
        while self._waitingForTransport and not self.transport.disconnected:
            self._drained = self._drained or self.factory.loop.create_future()
            await asyncio.shield(self._drained)

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # ---- ending ------------------------------------------------------------------------------------------------

    def requestDone(self, request: Exchange) -> None:
        self.active = time.monotonic()
        super().requestDone(request)

    def idle_for(self, now: float) -> float:
        """Seconds since it did anything; 0 while it does something."""
        return 0.0 if self.requests or self.head_started or self.refused else max(now - self.active, 0.0)

    def check_time(self, now: float) -> None:
        """Close a connection that is idle, too slow to send, or that reads nothing at all."""
        if self._stalled(now):
            self.abort()
        elif self.full:
            pass
        elif self.head_started:
            if now - self.head_started > settings.HEAD_SECONDS:
                self.refuse(envelope.for_status(408))
        elif not self.requests:
            if now - self.active > settings.IDLE_SECONDS:
                self.loseConnection()
        elif not self._handlingRequest and self._sends_slowly(now):
            self.refuse(envelope.for_status(408))

    def _sends_slowly(self, now: float) -> bool:
        """What came fast buys no more than a minute: else most of a body would hold its memory for hours."""
        rate, received = settings.BODY_BYTES_PER_SECOND, self.requests[-1].received
        if rate:
            self.body_due = min(self.body_due + (received - self.body_seen) / rate, now + RECEIVE_SECONDS)
            self.body_seen = received
        return now - self.active > RECEIVE_SECONDS or (rate > 0 and now > self.body_due)

    def _stalled(self, now: float) -> bool:
        """Nothing of what waits has been taken, for a long time: the client reads nothing, or has vanished."""
        return self.taking.stopped_for(self.transport, now, answering=bool(self.requests)) > settings.STALL_SECONDS

    def drain(self) -> None:
        """Take what has arrived already; `leave` follows."""
        self._read_what_is_there()
        self.active = time.monotonic()
        self.draining = True

    def leave(self, now: float) -> None:
        """Close if nothing runs. A client that asks again meanwhile is answered, and told to go elsewhere."""
        if self.idle_for(now) > LEAVE_SECONDS:
            self._read_what_is_there()  # a busy process may not have come to it yet
            if self.idle_for(now):
                self.loseConnection()

    def _read_what_is_there(self) -> None:
        if not self.busy and not self.transport.disconnecting:
            self.transport.doRead()
