"""ASGI handler of the inference POSTs: Django's URLconf and views, without the rest of Django's handler.

Left out, for 0.65 ms of CPU a request: middleware, signals and their thread hops, the thread-sensitive
context, a task that listens for the disconnect, a spooled file. So it does itself what those would: CORS, the
request's log line, ids and errors; and nothing under it may touch the ORM (without `request_finished` a
thread never gives its connection back). The server cancels its task when the client leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import ResolverMatch, get_resolver

from apiv1.errors import Rendered, let_go, render, translated
from apiv1.sse import StreamBroken
from gateway.errors import CLIENT_LEFT
from gateway.logs import RequestLog, answering
from gateway.server import cors, envelope, stamps, state
from gateway.server.inbound import Headers, LeanRequest
from gateway.server.keepalive import KeepAlive, wanted
from gateway.telemetry import metrics, traces

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

INFERENCE = ("/chat/completions",)


class Dispatcher:
    """Inference POSTs and the API's preflights to the lean handler, all else to Django's own."""

    def __init__(self, stock: Application) -> None:
        self.stock = stock
        prefix = settings.API_PREFIX.rstrip("/")
        self.lean = frozenset(prefix + path + end for path in INFERENCE for end in ("", "/"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if method == "POST" and path in self.lean:
            await self._answer(Lean(scope, receive, send))
        elif method == "OPTIONS" and envelope.under_api(path):
            await Lean(scope, receive, send).preflight(self.stock)
        else:
            await self.stock(scope, receive, send)

    async def _answer(self, lean: Lean) -> None:
        log = lean.log
        answering.set(log)
        if not traces.on:
            await lean.run()
            return
        trace = traces.begin(log.method, log.path, lean.headers.get("traceparent", ""), log.wire_id)
        try:
            await lean.run()
        finally:
            if trace is not None:
                trace.end(lean.status, log)


class Lean:
    """One request on its way through."""

    __slots__ = ("headers", "keep_alive", "log", "receive", "scope", "send", "started", "status")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.headers = Headers(scope["headers"])
        self.log = RequestLog(scope["method"], scope["path"], client_request_id=self.headers.client_request_id)
        self.status = CLIENT_LEFT
        self.started = False  # the status line is out

    async def run(self) -> None:
        say = self._say if wanted(self.scope, self.headers) else None
        self.keep_alive = KeepAlive(say, framed=self.scope.get("http_version") != "1.0")
        try:
            body = await self._body()
            if body is not None:
                request = LeanRequest(self.scope, self.headers, body, self.log)
                request.keep_alive = self.keep_alive
                await self._serve(request)
        except asyncio.CancelledError as left:
            let_go(left)
            self.keep_alive.close()
            if state.draining:
                await self._cut_off()
            else:
                self.status = CLIENT_LEFT
            raise
        finally:
            self.keep_alive.close()
            self.log.write(self.status)

    async def preflight(self, otherwise: Application) -> None:
        """Answer a browser's preflight; any other OPTIONS is Django's to answer."""
        origin = self.headers.raw(b"origin")
        if origin is None or "access-control-request-method" not in self.headers:
            await otherwise(self.scope, self.receive, self.send)
            return
        pairs = cors.preflight(origin, self.headers.raw(b"access-control-request-headers"))
        await self._start(204, pairs)
        await self.send({"type": "http.response.body"})
        self.log.write(204)

    async def _serve(self, request: LeanRequest) -> None:
        try:
            match = resolve(request.path)
            request.resolver_match = match
            response: HttpResponseBase = await match.func(request, *match.args, **match.kwargs)
        except Exception as error:
            fault = translated(error, request)
            let_go(error)
            self.log.error_code = fault.code or fault.type
            await self._refuse(render(fault))
            return
        if isinstance(response, StreamingHttpResponse):
            if not self.started:
                await self._start(response.status_code, self._pairs(response))
            await self._stream(response)
        elif isinstance(response, HttpResponse):
            await self._whole(response)

    def _pairs(self, response: HttpResponseBase) -> cors.Pairs:
        return encoded(response) + cors.headers(self.headers.raw(b"origin"))

    async def _whole(self, response: HttpResponse) -> None:
        content = response.content
        if not self.started:
            pairs = self._pairs(response)
            pairs.append((b"content-length", b"%d" % len(content)))
            await self._start(response.status_code, pairs)
        elif response.status_code >= 400:
            await self._fail(content)
            return
        await self.send({"type": "http.response.body", "body": content})

    async def _stream(self, response: StreamingHttpResponse) -> None:
        chunks = response._iterator if response.is_async else response.__aiter__()  # type: ignore[attr-defined]
        send, keep_alive, now = self.send, self.keep_alive, asyncio.get_running_loop().time
        try:
            async for chunk in chunks:
                keep_alive.quiet_since = None
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                keep_alive.quiet_since = now()
        except StreamBroken as broken:
            let_go(broken)
            await self._break_off()
        else:
            await send({"type": "http.response.body"})
        finally:
            await _close(chunks)

    async def _body(self) -> bytes | None:
        message = await self.receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message.get("body", b"")
            return body
        parts = []
        while message["type"] == "http.request":
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(parts)
            message = await self.receive()
        return None

    async def _start(self, status: int, pairs: cors.Pairs) -> None:
        self.status, self.started = status, True
        await self.send({"type": "http.response.start", "status": status, "headers": pairs + stamps.of(self.log)})

    async def _say(self, word: bytes) -> None:
        """For the keep-alive. Neither send suspends, so that nothing comes between the two."""
        keep_alive = self.keep_alive
        if not self.started:
            await self._start(200, keep_alive.head() + cors.headers(self.headers.raw(b"origin")))
        await self.send({"type": "http.response.filler", "body": word})
        keep_alive.quiet_since = asyncio.get_running_loop().time()

    async def _refuse(self, rendered: Rendered) -> None:
        if self.started:
            await self._fail(rendered.body)
            return
        await self._start(rendered.status, rendered.headers + cors.headers(self.headers.raw(b"origin")))
        await self.send({"type": "http.response.body", "body": rendered.body})

    async def _cut_off(self) -> None:
        """The server stops and cannot wait any longer. The pipeline has booked the request by now."""
        await self._refuse(render(envelope.for_status(503)))

    async def _fail(self, error: bytes) -> None:
        """The status is out, and says 200: the error, in JSON, can only be told in the body."""
        self.keep_alive.close()
        part = b"data: " + error + b"\n\n" if self.keep_alive.stream else error
        await self.send({"type": "http.response.body", "body": part, "more_body": True})
        await self._break_off()

    async def _break_off(self) -> None:
        """No clean end: SDKs would take it for success if it were not for the error event before it.

        Another server than ours can only end it: an exception stops stock Daphne's housekeeping for good.
        """
        self.log.broken = True
        metrics.stream_broken()
        ours = "http.response.drop" in self.scope.get("extensions", ())
        await self.send({"type": "http.response.drop" if ours else "http.response.body"})


@lru_cache(maxsize=64)
def resolve(path: str) -> ResolverMatch:
    """Only exact paths of the dispatcher's set come here, so the cache cannot be flooded."""
    return get_resolver().resolve(path)


@lru_cache(maxsize=1024)
def _name(name: str) -> bytes:
    return name.lower().encode("ascii")


def encoded(response: HttpResponseBase) -> cors.Pairs:
    pairs = [(_name(name), value.encode("latin1")) for name, value in response.items()]
    if response.cookies:
        pairs += [(b"set-cookie", cookie.OutputString().encode()) for cookie in response.cookies.values()]
    return pairs


async def _close(chunks: AsyncIterator[bytes]) -> None:
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()
