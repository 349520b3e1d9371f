"""A scripted provider on loopback: raw sockets, so that it can cut a connection at any byte.

    with Upstream() as upstream:                    # in a thread with a loop of its own
        upstream.script("acme", Stream(cut_after=3))  # what a model does (upstream's name of it) ...
        upstream.queue(error(429))                    # ... or only the next request
        ... call upstream.url ...
        upstream.served[-1].body, .headers, .outcome

Model names choose scripts too (`upstream_scripts.named`). As a process: `python -m tests.upstream --port 8120`,
then GET /stats says what was served, by request and by marker (its `user`, or `marker:x` in its text).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

from tests.upstream_scripts import DEFAULT, Json, Script, named

MARKER = re.compile(rb"marker[:=]\s*([\w.-]+)")


class ClientGoneError(Exception):
    """The client closed the connection before the script was through."""


class Served:
    """One request: what came, what was answered, how it ended. Implements upstream_scripts.Exchange."""

    def __init__(self, number: int, target: str, headers: dict[str, str], raw: bytes) -> None:
        self.number, self.target, self.headers, self.raw = number, target, headers, raw
        self.body: Json = json.loads(raw) if raw else {}
        self.model = str(self.body.get("model", ""))
        found = MARKER.search(raw)
        self.marker = str(self.body.get("user") or (found.group(1).decode() if found else ""))
        self.status: int | None = None
        self.usage: Json | None = None
        self.events = 0
        self.outcome = "running"  # whole | cut | gone (client closed) | running
        self.ended = threading.Event()
        self.ended_at: float | None = None  # time.monotonic()

    def stats(self) -> Json:
        names = ("number", "model", "marker", "status", "usage", "events", "outcome")
        return {name: getattr(self, name) for name in names} | {"stream": bool(self.body.get("stream"))}

    def connect(self, writer: asyncio.StreamWriter, closed: asyncio.Task[bytes]) -> None:
        self._writer, self._closed, self._chunked = writer, closed, False

    async def head(self, status: int = 200, headers: Json | None = None, length: int | None = None) -> None:
        self.status, self._chunked = status, length is None
        framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        await self._send(f"HTTP/1.1 {status} Scripted\r\n{extra}{framing}\r\n\r\n".encode())

    async def write(self, data: bytes) -> None:
        await self._send(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked and data else data)

    async def end(self) -> None:
        if self._chunked:
            await self._send(b"0\r\n\r\n")
        self.finish("whole")

    async def pause(self, seconds: float) -> None:
        await asyncio.wait([self._closed], timeout=seconds)
        self._check()

    async def hang(self) -> None:
        await asyncio.wait([self._closed])
        self._check()

    def cut(self) -> None:
        self.finish("cut")
        self._writer.close()

    def reset(self) -> None:
        """RST instead of FIN: as when the provider's process was killed with our request unread."""
        self.finish("cut")
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def send_raw(self, data: bytes) -> None:
        """As it is, whatever framing was announced."""
        await self._send(data)

    def finish(self, outcome: str) -> None:
        if self.outcome == "running":
            self.outcome, self.ended_at = outcome, time.monotonic()
            self.ended.set()

    async def _send(self, data: bytes) -> None:
        self._check()
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as exc:
            raise ClientGoneError from exc

    def _check(self) -> None:
        if self._closed.done() and (self._closed.exception() or not self._closed.result()):
            raise ClientGoneError


class Upstream:
    """The server. `url` is its base URL; `served` every request so far, in order of arrival."""

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        self.host, self.port = host, port
        self.served: list[Served] = []
        self.connections = 0
        self._scripts: dict[str, Script] = {}
        self._queue: deque[Script] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/v1"

    def script(self, model: str, script: Script) -> None:
        self._scripts[model] = script

    def queue(self, *scripts: Script) -> None:
        self._queue.extend(scripts)

    def reset(self) -> None:
        self.served.clear()
        self._scripts.clear()
        self._queue.clear()

    def stats(self) -> Json:
        """{"requests", "connections", "outcomes": {…}, "markers": {marker: [stats…]}, "served": [stats…]}"""
        served = [request.stats() for request in self.served]
        markers: dict[str, list[Json]] = defaultdict(list)
        for entry in served:
            markers[entry["marker"]].append(entry)
        outcomes = Counter(entry["outcome"] for entry in served)
        counts = {"requests": len(served), "connections": self.connections, "outcomes": outcomes}
        return counts | {"markers": markers, "served": served}

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self.run(ready)), name="upstream", daemon=True)
        self._thread.start()
        if not ready.wait(60):
            raise RuntimeError("the scripted upstream did not start")
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread is not None:
            self._thread.join(10)

    async def run(self, ready: threading.Event | None = None) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, self.host, self.port, limit=2**20, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        if ready is not None:
            ready.set()
        await self._stopping.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        first = asyncio.ensure_future(reader.read(1))
        try:
            while byte := await first:
                request = await self._read(byte, reader)
                first = asyncio.ensure_future(reader.read(1))  # of the next request, or the client's goodbye
                if not await self._serve(request, writer, first):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            first.cancel()
            self._tasks.discard(task)
            writer.close()

    async def _read(self, first: bytes, reader: asyncio.StreamReader) -> Served:
        lines = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        method, target, _ = lines[0].split(" ", 2)
        return Served(len(self.served), f"{method} {target}", headers, raw)

    async def _serve(self, request: Served, writer: asyncio.StreamWriter, closed: asyncio.Task[bytes]) -> bool:
        """Whether the connection may be used for another request."""
        request.connect(writer, closed)
        if not request.target.startswith("POST /v1/"):
            await self._desk(request)
            return True
        self.served.append(request)
        script = self._queue.popleft() if self._queue else self._scripts.get(request.model)
        try:
            await (script or named(request.model) or DEFAULT)(request)
        except ClientGoneError:
            pass
        finally:
            request.finish("gone")
        return request.outcome == "whole"

    async def _desk(self, request: Served) -> None:
        answer: dict[str, Any] = {"error": {"message": "no such page", "type": None, "param": None, "code": None}}
        if request.target == "GET /stats":
            answer = self.stats()
        elif request.target == "POST /reset":
            self.reset()
            answer = {}
        elif request.target == "GET /v1/models":
            answer = {
                "object": "list",
                "data": [{"id": name, "object": "model"} for name in self._scripts or ["any"]],
            }
        data = json.dumps(answer).encode()
        await request.head(404 if "error" in answer else 200, {"content-type": "application/json"}, len(data))
        await request.write(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8120)
    upstream = Upstream(parser.parse_args().port)
    print(f"scripted upstream on {upstream.url}", file=sys.stderr)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(upstream.run())


if __name__ == "__main__":
    main()
