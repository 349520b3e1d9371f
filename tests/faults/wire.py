"""An HTTP client that can hang up at any byte, of its request and of the answer, and knows what it got whole."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

PATIENCE_SECONDS = 180.0


class _Left(Exception):
    """We hung up on purpose."""


class _Cut(Exception):
    """The other side did."""


@dataclass(frozen=True)
class Goodbye:
    """When to hang up: after so many bytes of the request or of the answer, or after so many seconds."""

    after_sent: int | None = None
    after_received: int | None = None
    after_seconds: float | None = None
    reset: bool = False  # RST instead of FIN


@dataclass
class Reply:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""  # without the framing
    end: str = ""  # whole: ended properly; cut: by the server; left: by us; refused: no connection
    sent: bool = False  # the whole request

    @property
    def streamed(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def whole(self) -> bool:
        """The client has a whole answer: all of the JSON, or [DONE]."""
        if self.status != 200:
            return False
        return b"data: [DONE]\n\n" in self.body if self.streamed else self.end == "whole"

    def events(self) -> list[Any]:
        lines = [line[6:] for line in self.body.split(b"\n\n")[:-1]]
        return [json.loads(line) for line in lines if line != b"[DONE]"]

    def describe(self) -> str:
        tail = self.body[-160:].decode(errors="replace")
        return (
            f"status {self.status}, {self.end}, {len(self.body)} bytes, {self.headers.get('x-request-id')}: …{tail!r}"
        )


class Wire:
    """One client with one connection, kept alive if `keep`."""

    def __init__(self, port: int, *, keep: bool) -> None:
        self.port, self.keep = port, keep
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(
        self, body: bytes, headers: dict[str, str], goodbye: Goodbye | None = None, reply: Reply | None = None
    ) -> Reply:
        """A `reply` that is given can be looked at while it comes."""
        goodbye, reply = goodbye or Goodbye(), reply or Reply()
        try:
            async with asyncio.timeout(goodbye.after_seconds or PATIENCE_SECONDS):
                await self._exchange(body, headers, goodbye, reply)
            reply.end = "whole"
        except (_Left, TimeoutError):
            reply.end = "left"
        except (_Cut, OSError, asyncio.IncompleteReadError):
            reply.end = "cut" if self._writer is not None else "refused"
        except asyncio.CancelledError:
            self.hang_up()
            raise
        if reply.end != "whole" or not self.keep or reply.headers.get("connection") == "close":
            self.hang_up(reset=goodbye.reset)
        return reply

    def hang_up(self, *, reset: bool = False) -> None:
        writer, self._writer, self._reader = self._writer, None, None
        if writer is not None and reset:
            writer.transport.abort()
        elif writer is not None:
            writer.close()

    async def _exchange(self, body: bytes, headers: dict[str, str], goodbye: Goodbye, reply: Reply) -> None:
        if self._writer is None or self._reader is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        lines.append(f"content-length: {len(body)}\r\n\r\n")
        request = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{''.join(lines)}".encode() + body
        if goodbye.after_sent is not None and goodbye.after_sent < len(request):
            self._writer.write(request[: goodbye.after_sent])
            await self._writer.drain()
            raise _Left
        self._writer.write(request)
        await self._writer.drain()
        reply.sent = True
        await _Receiver(self._reader, reply, goodbye.after_received).receive()


class _Receiver:
    def __init__(self, reader: asyncio.StreamReader, reply: Reply, budget: int | None) -> None:
        self.reader, self.reply = reader, reply
        self.budget = 2**60 if budget is None else budget
        self.buffer = b""

    async def receive(self) -> None:
        lines = (await self._until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.reply.status = int(lines[0].split(" ")[1])
        for name, _, value in (line.partition(":") for line in lines[1:]):
            self.reply.headers[name.lower()] = value.strip()
        if "content-length" in self.reply.headers:
            await self._take(int(self.reply.headers["content-length"]))
            return
        while size := int(await self._until(b"\r\n"), 16):
            await self._take(size)
            await self._until(b"\r\n")
        await self._until(b"\r\n")

    async def _until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            await self._more()
        found, _, self.buffer = self.buffer.partition(mark)
        return found

    async def _take(self, size: int) -> None:
        """Into the body, as it comes: what was delivered counts, though the rest may never come."""
        while size:
            if not self.buffer:
                await self._more()
            piece, self.buffer = self.buffer[:size], self.buffer[size:]
            self.reply.body += piece
            size -= len(piece)

    async def _more(self) -> None:
        if self.budget <= 0:
            raise _Left
        data = await self.reader.read(min(65_536, self.budget))
        if not data:
            raise _Cut
        self.budget -= len(data)
        self.buffer += data
