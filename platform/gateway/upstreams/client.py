"""HTTP to providers: aiohttp, one client per event loop, keep-alive pools, time-outs of the target.

No cookies, no redirects, no proxies from the environment. aiohttp's exceptions end here (faults.py). Whoever
is cancelled while waiting leaves no connection behind: it is closed, never returned to the pool.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Mapping
from functools import lru_cache

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from yarl import URL

from gateway import __version__
from gateway.errors import UpstreamError
from gateway.upstreams import addresses
from gateway.upstreams.base import Target
from gateway.upstreams.faults import BROKEN, from_exception, note

# Shorter than the 5 s after which uvicorn, Node and llama.cpp close an idle connection: a POST on a connection
# that the other side is closing fails, and cannot be repeated safely.
KEEP_ALIVE_S = 4.0
LARGEST_ANSWER = 64 * 2**20
LARGEST_PLAIN_BODY = 2**20  # aiohttp warns about larger bytes; a file it sends piece by piece
DRAIN_S = 1.0
# llama.cpp promises to keep the connection of a stream and closes it. Used again at once, it would fail the
# next request in a way that cannot be repeated safely; after this time its goodbye has arrived.
STREAM_GRACE_S = 0.05

NETWORK_ERRORS = (aiohttp.ClientError, TimeoutError, OSError, ValueError)


class _Connector(aiohttp.TCPConnector):
    """A pool whose connections rest for `grace_s` seconds between two requests."""

    def __init__(self, grace_s: float) -> None:
        super().__init__(
            limit=0,  # the desk's queue bounds what is in flight
            keepalive_timeout=KEEP_ALIVE_S,
            socket_factory=addresses.open_socket,
        )
        self._grace_s = grace_s

    async def _get(self, key: ConnectionKey, traces: list[aiohttp.tracing.Trace]) -> Connection | None:
        resting = self._conns.get(key)  # the one that rests longest comes first
        while resting and not resting[0][0].is_connected():
            resting.popleft()
        if resting and time.monotonic() - resting[0][1] < self._grace_s:
            return None  # a new one is opened
        return await super()._get(key, traces)


class Client:
    """Streams and whole answers have a pool each."""

    def __init__(self) -> None:
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._drains: set[asyncio.Task[None]] = set()

    async def post(self, target: Target, path: str, body: bytes, *, stream: bool = False) -> Response:
        """Send JSON; returns once the headers are there. Raises UpstreamError or UpstreamTimeout."""
        data = body if len(body) <= LARGEST_PLAIN_BODY else io.BytesIO(body)
        return await self._send("POST", target, path, data, stream=stream)

    async def get(self, target: Target, path: str) -> Response:
        """As `post`, without a body."""
        return await self._send("GET", target, path, None)

    async def _send(
        self, method: str, target: Target, path: str, data: bytes | io.BytesIO | None, *, stream: bool = False
    ) -> Response:
        try:
            answer = await self._session(stream).request(
                method,
                _endpoint(target.base_url, path, addresses.rules()),
                data=data,
                headers=_headers(target.credential),
                timeout=_timeout(target.connect_timeout_s, target.read_timeout_s),
                allow_redirects=False,
            )
        except NETWORK_ERRORS as exc:
            raise from_exception(exc, target) from exc
        return Response(answer, target, self._drains)

    async def close(self) -> None:
        sessions, self._sessions = self._sessions, {}
        for task in list(self._drains):
            task.cancel()
        await asyncio.gather(*self._drains, return_exceptions=True)
        for session in sessions.values():
            await session.close()

    def _session(self, stream: bool) -> aiohttp.ClientSession:
        session = self._sessions.get(stream)
        if session is None:
            session = self._sessions[stream] = aiohttp.ClientSession(
                connector=_Connector(STREAM_GRACE_S if stream else 0.0),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={
                    "Content-Type": "application/json",
                    "Accept": "application/json, text/event-stream",
                    "Accept-Encoding": "identity",  # compressed streams arrive late, in blocks
                    "User-Agent": f"counterfoil/{__version__}",
                },
            )
        return session


class Response:
    """An answer whose headers are there. relay.Source, for streams."""

    __slots__ = ("_answer", "_drains", "_target", "headers", "status")

    def __init__(self, answer: aiohttp.ClientResponse, target: Target, drains: set[asyncio.Task[None]]) -> None:
        self._answer, self._target, self._drains = answer, target, drains
        self.status = answer.status
        self.headers: Mapping[str, str] = answer.headers

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def read(self) -> bytes:
        """What has arrived, waiting for something to arrive; b"" at the end."""
        try:
            return await self._answer.content.readany()
        except NETWORK_ERRORS as exc:
            raise from_exception(exc, self._target) from exc

    async def read_all(self, limit: int = LARGEST_ANSWER) -> bytes:
        """The whole body. Closes the connection if it fails, is too long, or nobody waits any more."""
        pieces, length = [], 0
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

    def finish(self) -> None:
        """The answer is whole. Wait, for a moment and in the background, for the body's last bytes, since only
        a connection that is read to its end can serve the next request."""
        if self._answer.content.at_eof():
            self._answer.release()
            return
        task = asyncio.get_running_loop().create_task(self._drain())
        self._drains.add(task)
        task.add_done_callback(self._drains.discard)

    def abort(self, cause: str = "") -> None:
        """Close the connection at once, without sending what is left of the request. Idempotent."""
        if cause:
            note(self._target, cause)
        connection = self._answer.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        self._answer.close()

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(DRAIN_S):
                while await self._answer.content.readany():
                    pass
        except NETWORK_ERRORS:
            pass
        finally:
            self._answer.close()  # does nothing if the end came


@lru_cache(maxsize=1024)
def _endpoint(base_url: str, path: str, rules: addresses.Rules) -> URL:
    """Raises AddressRefused. What a name resolves to is judged when connecting (addresses.open_socket)."""
    addresses.check_base_url(base_url, allow_private=rules.allow_private, allow_loopback=rules.allow_loopback)
    return URL(base_url.rstrip("/") + path)


@lru_cache(maxsize=1024)
def _timeout(connect_s: float, read_s: float) -> aiohttp.ClientTimeout:
    # No total: a stream may last hours. connect covers name, TCP and TLS; sock_read each wait for bytes.
    return aiohttp.ClientTimeout(total=None, connect=connect_s, sock_read=read_s)


def _headers(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"} if credential else {}
