"""HTTP to providers: aiohttp, one client per event loop, keep-alive pools, time-outs of the target.

No cookies, no redirects, no proxies from the environment. aiohttp's exceptions end here (faults.py). Whoever
is cancelled while waiting leaves no connection behind: it is closed, never returned to the pool.
"""

from __future__ import annotations

import asyncio
import math
import time
from functools import lru_cache

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from yarl import URL

from gateway import __version__
from gateway.logs import answering
from gateway.telemetry import traces
from gateway.upstreams import addresses
from gateway.upstreams.base import Target
from gateway.upstreams.faults import from_exception
from gateway.upstreams.response import NETWORK_ERRORS, Response

# Shorter than the 5 s after which uvicorn, Node and llama.cpp close an idle connection: a POST on a connection
# that the other side is closing fails, and cannot be repeated safely.
KEEP_ALIVE_S = 4.0
# llama.cpp promises to keep the connection of a stream and closes it. Used again at once, it would fail the
# next request in a way that cannot be repeated safely; after this time its goodbye has arrived.
STREAM_GRACE_S = 0.05

Headers = tuple[tuple[str, str], ...]

UNSAFE = frozenset("\r\n\0")
HEADERS = (
    "Content-Type: application/json",
    "Accept: application/json, text/event-stream",
    "Accept-Encoding: identity",  # compressed streams arrive late, in blocks
    f"User-Agent: counterfoil/{__version__}",
)


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
        self._pools: dict[bool, _Connector] = {}
        self._drains: set[asyncio.Task[None]] = set()
        # What aiohttp's pools want to see of a request: where it goes.
        self._destinations: dict[URL, aiohttp.ClientRequest] = {}

    async def post(
        self, target: Target, path: str, body: bytes, *, headers: Headers = (), stream: bool = False
    ) -> Response:
        """Send JSON; returns once the headers are there. Raises UpstreamError or UpstreamTimeout.

        `path` begins where the base URL ends and may have a query; `headers` are the protocol's own.
        """
        return await self._send("POST", target, path, body, headers, stream=stream)

    async def get(self, target: Target, path: str, *, headers: Headers = ()) -> Response:
        """As `post`, without a body."""
        return await self._send("GET", target, path, b"", headers)

    async def _send(
        self, method: str, target: Target, path: str, body: bytes, headers: Headers, *, stream: bool = False
    ) -> Response:
        total, limit = target.total_timeout_s, target.connect_timeout_s
        deadline = math.inf if total is None else asyncio.get_running_loop().time() + total
        try:
            url = _endpoint(target.base_url, path, addresses.rules())
            head = _head(method, url, headers) + _trail()
            if method == "POST":
                head += b"Content-Length: %d\r\n\r\n" % len(body)
            else:
                head += b"\r\n"
            connection = await self._connect(url, limit if total is None else min(limit, total), stream)
        except NETWORK_ERRORS as exc:
            raise from_exception(exc, target, "connect") from exc
        response = Response(connection, target, self._drains, deadline)
        await response.start(head, body)
        return response

    async def _connect(self, url: URL, timeout_s: float, stream: bool) -> Connection:
        pool = self._pools.get(stream)
        if pool is None:
            pool = self._pools[stream] = _Connector(STREAM_GRACE_S if stream else 0.0)
        destination = self._destinations.get(url)
        if destination is None:
            if len(self._destinations) > 1000:
                self._destinations.clear()
            destination = self._destinations[url] = aiohttp.ClientRequest("POST", url)
        try:
            return await pool.connect(destination, [], _timeout(timeout_s))
        except TimeoutError as exc:
            raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {url}") from exc

    async def close(self) -> None:
        pools, self._pools = self._pools, {}
        for task in list(self._drains):
            task.cancel()
        await asyncio.gather(*self._drains, return_exceptions=True)
        for pool in pools.values():
            await pool.close()


def _trail() -> bytes:
    """Which request of ours this is, for the provider's own logs and traces. No id of a tenant or a user."""
    answered, leg = answering.get(), traces.leg.get()
    lines = b"" if answered is None else b"X-Client-Request-Id: %b\r\n" % answered.wire_id.encode()
    return lines if leg is None else lines + b"traceparent: %b\r\n" % leg.traceparent.encode()


@lru_cache(maxsize=1024)
def _endpoint(base_url: str, path: str, rules: addresses.Rules) -> URL:
    """Raises AddressRefused. What a name resolves to is judged when connecting (addresses.open_socket)."""
    addresses.check_base_url(base_url, allow_private=rules.allow_private, allow_loopback=rules.allow_loopback)
    return URL(base_url.rstrip("/") + path)


@lru_cache(maxsize=1024)
def _timeout(connect_s: float) -> aiohttp.ClientTimeout:
    # connect covers name, TCP and TLS; response.py times each wait for bytes, and the whole.
    return aiohttp.ClientTimeout(total=None, connect=connect_s)


@lru_cache(maxsize=1024)
def _head(method: str, url: URL, headers: Headers) -> bytes:
    """The request's head but for its length. Raises ValueError for a credential that no header can hold."""
    lines = [f"{method} {url.raw_path_qs} HTTP/1.1", f"Host: {url.host_port_subcomponent}", *HEADERS]
    for name, value in headers:
        if not UNSAFE.isdisjoint(value):
            raise ValueError(f"the value of {name} holds a line break or a NUL")
        lines.append(f"{name}: {value}")
    return "".join(f"{line}\r\n" for line in lines).encode()
