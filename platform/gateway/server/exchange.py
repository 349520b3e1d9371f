"""One HTTP request and its response, between Twisted's channel and an ASGI application.

A lighter WebRequest than Daphne's: no queue, no regular expression per header, no reaping once a second.

- The whole body is in memory before the application starts (bounded by MAX_BODY_BYTES).
- `send()` returns once the client has taken enough: a slow reader costs one buffer, not the response.
- A client that leaves is noticed at once. An application that waits in `receive()` gets `http.disconnect`
  (Django's stock handler cleans up after itself); any other is cancelled on the spot.
- `{"type": "http.response.drop"}` ends the connection without the end of the chunked body, after flushing:
  the SDKs take a clean end without `[DONE]` for success.
- `{"type": "http.response.filler", "body": …}` is a part of the body that says nothing. It is left out while the
  client has not taken what came before, and never suspends.
"""

from __future__ import annotations

import asyncio
import logging
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from daphne.http_protocol import WebRequest
from django.conf import settings
from twisted.web.http import NO_BODY_CODES
from twisted.web.http_headers import Headers

from apiv1.errors import body_too_large, let_go
from gateway.server import envelope, unsent
from gateway.server.refusals import date_line, status_line
from gateway.telemetry import metrics

if TYPE_CHECKING:
    from gateway.server.channel import Channel

logger = logging.getLogger("gateway.server")

CRUMB = 4096  # a piece of a body that is smaller is copied
CLOSE_SECONDS = 10  # for an application that was told of the disconnect
SUSPECT = bytes([0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x85])  # line ends to some parsers: not in a field value
ASGI = {"version": "3.0", "spec_version": "2.4"}
END = b"0\r\n\r\n"


class Exchange(WebRequest):
    channel: Channel

    def __init__(self, channel: Channel, queued: object = None) -> None:
        # Not super().__init__(): it registers with Daphne's reaper and asks the socket for its addresses again.
        self.channel = channel
        self.transport = channel.transport
        self.client, self.host = channel.peer, channel.local
        self.server = channel.factory.server
        self.requestHeaders, self.responseHeaders = Headers(), Headers()
        self.notifications: list[Any] = []
        self.queued = False
        self.client_addr = self.server_addr = None
        self.application_queue = None
        self._response_started = False
        self.body: list[bytes] = []
        self.crumbs = bytearray()  # small pieces, which as objects would take up to fifty times their size
        self.received = 0
        self.task: asyncio.Task[None] | None = None
        self.gone = False
        self.unread = True
        self.method_known = False
        self._bodiless = self._sized = False
        self._head = b""
        self._listener: asyncio.Future[None] | None = None

    # ---- from the channel --------------------------------------------------------------------------------------

    def handleContentChunk(self, data: bytes) -> None:
        self.received += len(data)
        if self.received > settings.MAX_BODY_BYTES:
            self.channel.refuse(body_too_large(self.received))
        elif len(data) < CRUMB and self.received > len(data):  # not the first: most bodies come in one piece
            self.crumbs += data
        else:
            self._sweep_crumbs()
            self.body.append(data)

    def _sweep_crumbs(self) -> None:
        if self.crumbs:
            self.body.append(bytes(self.crumbs))
            self.crumbs = bytearray()

    def forget_body(self) -> None:
        """Nobody will read it. Channel and exchange know each other, so that it would stay until a collection."""
        self.body, self.crumbs = [], bytearray()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.method, self.uri, self.clientproto = command, path, version
        if not path.startswith(b"/"):
            path = _origin_form(path)
        self.path, _, self.query_string = path.partition(b"?")
        self.method_known = True
        self.process()

    def process(self) -> None:
        raw = self.requestHeaders._rawHeaders
        values = b"".join([value for many in raw.values() for value in many])
        if not self.uri.isascii() or len(values.translate(None, SUSPECT)) != len(values) or not self.path:
            self.channel.refuse(envelope.for_status(400))
            return
        raw.pop(b"Daphne-Root-Path", None)  # Daphne would let any client set the script name
        if raw.get(b"Upgrade", [b""])[0].lower() == b"websocket":
            self._upgrade()
            return
        loop = self.channel.factory.loop
        self.task = loop.create_task(self.server.application(self._scope(raw), self.receive, self.send))
        self.server.exchanges.add(self)
        metrics.in_flight(len(self.server.exchanges))
        self.task.add_done_callback(self._ended)

    def connectionLost(self, reason: object) -> None:
        self.gone = True
        self.forget_body()
        if self.task is None or self.task.done():
            return
        if not self.finished:
            metrics.client_left()
        if self._listener is not None:
            if not self._listener.done():
                self._listener.set_result(None)
            self.channel.factory.loop.call_later(CLOSE_SECONDS, self.task.cancel)
        else:
            self.task.cancel()

    def _scope(self, raw: dict[bytes, list[bytes]]) -> dict[str, Any]:
        headers = [
            (_lowered.get(name) or _lower(name), value)
            for name, many in raw.items()
            if b"_" not in name
            for value in many
        ]
        path = self.path.decode("ascii")
        return {
            "type": "http",
            "asgi": ASGI,
            "http_version": "1.1" if self.clientproto == b"HTTP/1.1" else "1.0",
            "method": self.method.decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": self.path,
            "root_path": "",
            "scheme": "http",
            "query_string": self.query_string,
            "headers": headers,
            "client": _address(self.client),
            "server": _address(self.host),
            "extensions": {"http.response.drop": {}, "http.response.filler": {}},
        }

    def _upgrade(self) -> None:
        """Hand the connection to Daphne's WebSocket protocol, which parses the request once more."""
        self._sweep_crumbs()
        self.content = BytesIO(b"".join(self.body))
        self.channel.factory.forget(self.channel)
        super().process()

    # ---- the application's side ------------------------------------------------------------------------------

    async def receive(self) -> dict[str, Any]:
        if self.unread:
            self.unread = False
            self._sweep_crumbs()
            body = self.body[0] if len(self.body) == 1 else b"".join(self.body)
            self.body = []
            return {"type": "http.request", "body": body, "more_body": False}
        if not self.gone and not self.finished:
            if self._listener is None:
                self._listener = self.channel.factory.loop.create_future()
            await asyncio.shield(self._listener)
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if self.gone or self.finished:
            return
        kind = message["type"]
        if kind == "http.response.body":
            more = message.get("more_body", False)
            self._write(message.get("body", b""), more)
            if not more:
                self._finish()
            elif self.channel.full:
                await self.channel.drained()
        elif kind == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
        elif kind == "http.response.filler":
            if not self.channel.behind:
                self._write(message["body"], True)
        elif kind == "http.response.drop":
            self._drop()
        else:
            raise ValueError(f"Cannot handle message type {kind}")

    def _start(self, status: int, headers: Any) -> None:
        """Keep the head until the first part of the body: then its length may be known."""
        if self._response_started:
            raise ValueError("HTTP response has already been started")
        self._response_started = True
        self.code = status
        self._bodiless = self.method == b"HEAD" or status in NO_BODY_CODES
        self._sized = self._bodiless
        lines = [status_line(status), date_line()]
        for name, value in headers:
            if name.lower() == b"content-length":
                self._sized = True
            lines.append(name + b": " + value)
        head = b"\r\n".join(lines)
        if not head.count(b"\n") == head.count(b"\r") == len(lines) - 1:
            raise ValueError("a response header contains a line break")
        self._head = head + b"\r\n"

    def _take_head(self, size: int, more: bool) -> bytes:
        head, self._head = self._head, b""
        channel = self.channel
        if not self._sized and not more:
            head += b"content-length: %d\r\n" % size
        elif not self._sized and self.clientproto == b"HTTP/1.1":
            self.chunked = True
            head += b"transfer-encoding: chunked\r\n"
        if channel.draining or not channel.persistent:
            channel.persistent = False
            head += b"connection: close\r\n"
        return head + b"\r\n"

    def _write(self, data: bytes, more: bool) -> None:
        if not self._response_started:
            raise ValueError("HTTP response has not yet been started")
        head = self._take_head(len(data), more) if self._head else b""
        if self._bodiless:
            data = b""
        elif self.chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            if not more:
                data += END
        if head or data:
            self.channel.push(head + data)

    def _finish(self) -> None:
        self.finished = 1
        if self._listener is not None and not self._listener.done():
            self._listener.set_result(None)
        self.channel.requestDone(self)

    def _drop(self) -> None:
        self.finished = 1
        if self._head:
            self.channel.push(self._take_head(0, True))
        unsent.break_off(self.channel, framed=self.chunked or self._sized)

    # ---- the end of the task -------------------------------------------------------------------------------------

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.server.exchanges.discard(self)
        metrics.in_flight(len(self.server.exchanges))
        self.task = None  # it may keep an exception, and that its frames, all of the request and this
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("Exception in the application", exc_info=error)
            let_go(error)
        if self.finished or self.gone:
            self.server.exchange_ended()
            return
        if self._response_started:
            self._drop()
        else:
            status = 503 if task.cancelled() else 500
            self.channel.refuse(envelope.for_status(status, self.method.decode(), self.path.decode()))
        self.server.exchange_ended()

    def basic_error(self, status: int, status_text: bytes, body: str) -> None:
        """What Daphne would answer with a page of HTML while it hands over a WebSocket."""
        self.channel.refuse(envelope.for_status(status))


_lowered: dict[bytes, bytes] = {}


def _lower(name: bytes) -> bytes:
    """Twisted hands out one bytes object per header name, so that looking it up beats lowering it."""
    if len(_lowered) < 10_000:
        _lowered[name] = name.lower()
    return name.lower()


def _address(address: Any) -> list[Any] | None:
    host = getattr(address, "host", None)
    return None if host is None else [host, address.port]


def _origin_form(target: bytes) -> bytes:
    """`http://host/path` as `/path`; anything else that does not start with a slash is no path of ours."""
    scheme, separator, rest = target.partition(b"://")
    if separator and scheme.lower() in (b"http", b"https"):
        return b"/" + rest.partition(b"/")[2]
    return target if target == b"*" else b""
