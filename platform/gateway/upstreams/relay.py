"""A provider's stream on its way to the client: reads, hands over, notices the end, the cut and the goodbye."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import NoReturn, Protocol

from gateway.errors import GatewayError, UpstreamError
from gateway.upstreams.base import Face, Usage
from gateway.upstreams.sse import EventSplitter, EventTooLarge
from gateway.upstreams.translator import FAILED, Translator


class Source(Protocol):
    """The bytes of a stream, as client.Response gives them."""

    async def read(self) -> bytes:
        """What has arrived, waiting for something to arrive; b"" at the end. Raises GatewayError."""
        ...

    def finish(self) -> None:
        """The answer is whole: the connection may be used again."""
        ...

    def abort(self, cause: str = "") -> None:
        """Close the connection at once; the cause is noted for the operator. Idempotent."""
        ...


def empty() -> UpstreamError:
    """For a 200 of which not one byte came: the answer has not begun, so another may be asked for it."""
    fault = UpstreamError(FAILED)
    fault.phase, fault.upstream_status = "head", 200
    return fault


class Relay:
    """base.Stream over server-sent events. `estimate` counts the request's tokens, if it ever has to."""

    def __init__(self, source: Source, face: Face, estimate: Callable[[], int]) -> None:
        self._source = source
        self._splitter = EventSplitter()
        self._translator = Translator(face, estimate)
        self._ready = b""
        self._failure: GatewayError | None = None
        self._begun = self._ended = False

    async def prime(self) -> None:
        """Wait for the first event. Raises GatewayError while the answer can still be an ordinary error."""
        while not self._ready and not self._ended:
            await self._advance()
        if self._failure is not None and not self._ready:
            self._raise()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._ready:
            if self._failure is not None:
                self._raise()
            if self._ended:
                raise StopAsyncIteration
            await self._advance()
        ready, self._ready = self._ready, b""
        return ready

    @property
    def usage(self) -> Usage:
        return self._translator.usage

    async def aclose(self) -> None:
        self._ready = b""
        if not self._ended:
            self._ended = True
            self._source.abort()

    def _raise(self) -> NoReturn:
        """The failure, and let go of it: its traceback holds all that belongs to the request, and would be in a
        cycle with it until the garbage collector comes to the oldest objects, which may take hours."""
        failure, self._failure = self._failure, UpstreamError(FAILED)
        assert failure is not None
        try:
            raise failure
        finally:
            del failure

    async def _advance(self) -> None:
        """One read of the socket."""
        try:
            piece = await self._source.read()
        except GatewayError as exc:  # noted where it was mapped
            self._failure, self._ended = exc, True
            self._source.abort()
            return
        except BaseException:
            # Cancelled: the client has left, and the provider must not go on working for nobody.
            await self.aclose()
            raise
        self._begun = self._begun or bool(piece)
        try:
            events = self._splitter.feed(piece) if piece else self._splitter.finish()
        except EventTooLarge:
            self._fail(UpstreamError(FAILED), "an event is too large")
            return
        translator = self._translator
        self._ready = translator.translate(events)
        if translator.failure is not None:
            self._fail(translator.failure, translator.cause)
            translator.failure = None
        elif translator.done or not piece:
            self._end()

    def _end(self) -> None:
        try:
            self._ready += self._translator.end()
        except UpstreamError as exc:
            if self._begun:
                self._fail(exc, "the stream ended without a finish_reason")
            else:
                self._fail(empty(), "the stream is empty")
        else:
            self._ended = True
            self._source.finish()

    def _fail(self, failure: GatewayError, cause: str) -> None:
        self._failure, self._ended = failure, True
        self._source.abort(cause)
