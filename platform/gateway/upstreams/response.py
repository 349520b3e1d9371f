"""One request on a connection of aiohttp's pool, and its answer as it arrives.

aiohttp opens, keeps and closes connections and parses HTTP; its ClientSession is left out, whose own objects
for a request, its payload and its response cost 100 us of CPU each time.

Time-outs, all of the target's: until the first byte of the body, counted from the last byte of the request that
was sent (headers do not end it: a provider that sends those and hangs would be waited for in vain); between two
pieces of the body; and for the whole call, from connecting to the last byte.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from functools import partial
from weakref import ref

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader

from gateway import timeouts
from gateway.errors import Phase, UpstreamError
from gateway.timeouts import Timeout
from gateway.upstreams.base import Target
from gateway.upstreams.faults import BROKEN, from_exception, note

LARGEST_ANSWER = 64 * 2**20
LARGEST_ERROR = 65_536  # bytes of an error's body
ERROR_S = 5.0  # for an error's body to come: its status has said most of it
PIECE = 2**18  # of a request's body; larger ones are sent piece by piece, as the provider takes them
READ_BUFFER = 2**16
DRAIN_S = 1.0

NETWORK_ERRORS = (aiohttp.ClientError, TimeoutError, OSError, ValueError)


class Response:
    """An answer; `status` and `headers` are there once `start` has returned. relay.Source, for streams."""

    __slots__ = (
        "__weakref__",
        "_connection",
        "_deadline",
        "_drains",
        "_late",
        "_loop",
        "_payload",
        "_protocol",
        "_silence",
        "_target",
        "_timer",
        "_upload",
        "_waiting_since",
        "headers",
        "phase",
        "status",
    )

    def __init__(
        self,
        connection: Connection,
        target: Target,
        drains: set[asyncio.Task[None]],
        deadline: float = math.inf,
    ) -> None:
        """`deadline`, in the loop's time, is when the whole answer must be here."""
        self._connection, self._target, self._drains = connection, target, drains
        assert connection.protocol is not None
        self._protocol: ResponseHandler = connection.protocol
        self._loop = asyncio.get_running_loop()
        self._payload: StreamReader | None = None
        self._upload: asyncio.Task[None] | None = None
        # When we began to wait for bytes. One timer looks at it now and then: a timer for every read costs more.
        self._waiting_since: float | None = None
        self._timer: Timeout | asyncio.TimerHandle | None = None
        # How long the provider may be silent: until the first byte of the body, and from then on.
        first = target.first_byte_timeout_s
        self._silence = target.read_timeout_s if first is None else first
        self._deadline = deadline
        self._late: aiohttp.SocketTimeoutError | None = None
        self.phase: Phase = "connect"
        self.status = 0
        self.headers: Mapping[str, str] = {}

    # ---- the request -------------------------------------------------------------------------------------------

    async def start(self, head: bytes, body: bytes) -> None:
        """Send the request; returns once the headers of the answer are there. Raises UpstreamError."""
        try:
            self._protocol.set_response_params(read_until_eof=True, read_bufsize=READ_BUFFER)
            self._send(head, body)
            self._watch()
            await self._receive_head()
        except NETWORK_ERRORS as exc:
            self.abort()
            raise self._fault(exc) from exc
        except BaseException:
            self.abort()
            raise

    def _send(self, head: bytes, body: bytes) -> None:
        if len(body) > PIECE:
            self._upload = self._loop.create_task(self._send_pieces(head, body))
        elif (transport := self._protocol.transport) is not None:
            self.phase = "sent"
            transport.write(head + body)
            self._waiting_since = self._loop.time()

    async def _send_pieces(self, head: bytes, body: bytes) -> None:
        view, start = memoryview(body), 0
        try:
            while (transport := self._protocol.transport) is not None and start < len(body):
                if not start:
                    self.phase = "sent"
                transport.write(view[start : start + PIECE] if start else head + view[:PIECE])
                start += PIECE
                if self.phase != "body":
                    self._waiting_since = self._loop.time()
                await self._protocol._drain_helper()
        except (aiohttp.ClientError, OSError):
            pass  # the connection is lost; whoever waits for the answer is told
        if self.phase != "body":
            self._waiting_since = self._loop.time()

    async def _receive_head(self) -> None:
        if self._protocol.transport is None:
            raise aiohttp.ServerDisconnectedError()
        while True:
            try:
                message, payload = await self._protocol.read()
            except HttpProcessingError as exc:
                raise aiohttp.ClientPayloadError(f"not HTTP: {exc.message}") from exc
            if not 100 <= message.code < 200 or message.code == 101:
                break
        self.phase = "head"
        self.status, self.headers, self._payload = message.code, message.headers, payload
        # Weak, as is the timer's: else the connection would keep an answer alive that nobody wants any more.
        payload.on_eof(partial(_release, ref(self)))

    def _watch(self) -> None:
        first_look_s = min(self._silence, self._target.read_timeout_s)  # by then the latter may be in force
        if self._loop.time() + first_look_s < self._deadline:
            self._timer = timeouts.call_later(self._loop, first_look_s, _look_at_clock, ref(self))
        else:
            self.look_at_clock()

    def look_at_clock(self) -> None:
        """Give the provider up if it has kept us waiting, or has been at it, for longer than it may."""
        now, since = self._loop.time(), self._waiting_since
        left = self._silence if since is None else since + self._silence - now
        if left > 0 and now < self._deadline:
            # Not later than the time-out between pieces: it may be in force by then.
            left = min(left, self._target.read_timeout_s, self._deadline - now)
            self._timer = self._loop.call_later(left, _look_at_clock, ref(self))
            return
        what = f"silent for {self._silence} s" if left <= 0 else f"not done after {self._target.total_timeout_s} s"
        # Kept, since the end of the connection is an exception too, and comes later.
        self._late = late = aiohttp.SocketTimeoutError(f"{what} ({self.phase})")
        self._protocol.set_exception(late)
        if self._payload is not None:
            self._payload.set_exception(late)
        self.abort()

    def _fault(self, exc: BaseException) -> UpstreamError:
        return from_exception(self._late or exc, self._target, self.phase, self.status or None)

    # ---- the answer --------------------------------------------------------------------------------------------

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def read(self) -> bytes:
        """What has arrived, waiting for something to arrive; b"" at the end."""
        assert self._payload is not None
        if self.phase == "body":
            self._waiting_since = self._loop.time()
        try:
            piece = await self._payload.readany()
        except NETWORK_ERRORS as exc:
            # The payload keeps it, too: with its traceback it would be in a cycle with that, and with this.
            raise self._fault(exc) from exc.with_traceback(None)
        self._waiting_since = None
        if self.phase != "body":
            self.phase, self._silence = "body", self._target.read_timeout_s
        return piece

    async def read_all(self, limit: int | None = None) -> bytes:
        """The whole body, by itself up to LARGEST_ANSWER. Closes the connection if it fails, is too long, or
        nobody waits any more."""
        pieces, length = [], 0
        limit = LARGEST_ANSWER if limit is None else limit
        try:
            while piece := await self.read():
                pieces.append(piece)
                length += len(piece)
                if length > limit:
                    note(self._target, f"the body is longer than {limit} bytes")
                    raise UpstreamError(BROKEN)
        except BaseException:
            self.abort()
            raise
        return b"".join(pieces)

    async def read_error(self) -> bytes:
        """What comes of an error's body in a moment. A part, or nothing, will do: the status is known, and whoever
        could try elsewhere must not wait for a provider that hangs in the middle of its excuses."""
        said = b""
        try:
            async with asyncio.timeout(ERROR_S):
                while len(said) <= LARGEST_ERROR:
                    piece = await self.read()
                    if not piece:
                        return said
                    said += piece
        except (UpstreamError, TimeoutError):
            pass
        except BaseException:
            self.abort()
            raise
        self.abort()
        return said[:LARGEST_ERROR]

    # ---- the end -----------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """The answer is whole. Wait, for a moment and in the background, for the body's last bytes, since only
        a connection that is read to its end can serve the next request."""
        assert self._payload is not None
        if self._payload.is_eof():
            return
        task = self._loop.create_task(self._drain(self._payload))
        self._drains.add(task)
        task.add_done_callback(self._drains.discard)

    def abort(self, cause: str = "") -> None:
        """Close the connection at once, without sending what is left of the request. Idempotent."""
        if cause:
            note(self._target, cause)
        self._clear()
        _hang_up(self._connection)

    def release(self) -> None:
        """The body is whole: the connection is free for the next request, if all of ours was taken."""
        if self._upload is not None and not self._upload.done():
            self.abort()
            return
        self._clear()
        self._connection.release()

    def __del__(self) -> None:
        if self._connection.protocol is not None and not self._loop.is_closed():
            # Dropped: the provider must not go on. The garbage collector may call from any thread.
            self._loop.call_soon_threadsafe(_hang_up, self._connection)

    def _clear(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._upload is not None:
            self._upload.cancel()

    async def _drain(self, payload: StreamReader) -> None:
        try:
            async with asyncio.timeout(DRAIN_S):
                while await payload.readany():
                    pass
        except NETWORK_ERRORS:
            pass
        finally:
            self.abort()  # does nothing if the end came


def _look_at_clock(response: ref[Response]) -> None:
    if (found := response()) is not None:
        found.look_at_clock()


def _release(response: ref[Response]) -> None:
    if (found := response()) is not None:
        found.release()


def _hang_up(connection: Connection) -> None:
    if connection.transport is not None:
        connection.transport.abort()
    connection.close()
