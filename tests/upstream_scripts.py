"""What the scripted upstream can do with one request: each function here makes a script.

A script is `async (exchange) -> None`. `named("cut-3")` finds one by a model's name, so that a test that only
reaches the gateway (or a separate process) can choose how the provider behaves.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

Json = dict[str, Any]


class Exchange(Protocol):
    """One request and what may be answered to it (tests/upstream.py implements it)."""

    body: Json
    usage: Json | None  # the usage that was sent, for /stats
    events: int  # content events that were written whole

    async def head(self, status: int = 200, headers: Json | None = None, length: int | None = None) -> None: ...
    async def write(self, data: bytes) -> None: ...
    async def send_raw(self, data: bytes) -> None: ...
    async def end(self) -> None: ...
    async def pause(self, seconds: float) -> None: ...
    async def hang(self) -> None: ...
    def cut(self) -> None: ...
    def reset(self) -> None: ...


Script = Callable[[Exchange], Awaitable[None]]
UPSTREAM_ID = "chatcmpl-upstream-secret-id"
UPSTREAM_HEAD: Json = {"id": UPSTREAM_ID, "created": 1700000000, "model": "upstream-model-2026-01"}


def usage_of(body: Json, completion: int) -> Json:
    """Deterministic, so that tests and the fault suite know it: words of the messages, and pieces sent."""
    prompt = 3 + sum(len(str(message.get("content") or "").split()) for message in body.get("messages", []))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def words(count: int) -> list[str]:
    return [f"w{number} " for number in range(count)]


@dataclass(frozen=True)
class Raw:
    """Status, headers and body bytes as they are. Floats in `parts` are pauses in seconds."""

    parts: tuple[bytes | float, ...] = ()
    status: int = 200
    headers: Json = field(default_factory=dict)
    length: int | None = None  # a Content-Length; None: chunked
    cut: bool = False
    hang: bool = False

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.head(self.status, self.headers, self.length)
        for part in self.parts:
            if isinstance(part, float):
                await exchange.pause(part)
            else:
                await exchange.write(part)
        if self.hang:
            await exchange.hang()
        if self.cut:
            return exchange.cut()
        await exchange.end()


def body(value: Any, status: int = 200, headers: Json | None = None) -> Script:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Raw((data,), status, {"content-type": "application/json", **(headers or {})}, len(data))


def error(status: int, message: str = "upstream says no", headers: Json | None = None, **fields: Any) -> Script:
    return body({"error": {"message": message, "type": None, "param": None, "code": None, **fields}}, status, headers)


def html(status: int = 502) -> Script:
    page = b"<html><body>Bad gateway at acme-llm.example.com</body></html>"
    return Raw((page,), status, {"content-type": "text/html"}, len(page))


def truncated() -> Script:
    """Half of an answer, then the connection is gone."""
    data = b'{"id":"x","object":"chat.completion","choices":[{"index":0,"mess'
    return Raw((data,), headers={"content-type": "application/json"}, length=len(data) * 2, cut=True)


async def hang(exchange: Exchange) -> None:
    """Accept the request and never answer."""
    await exchange.hang()


async def drop(exchange: Exchange) -> None:
    """Accept the request and close the connection."""
    exchange.cut()


@dataclass(frozen=True)
class Answer:
    """A whole answer. `message`, `choice` and `top` are merged into the JSON on their level."""

    text: str | None = "Hello there."
    message: Json = field(default_factory=dict)
    choice: Json = field(default_factory=dict)
    top: Json = field(default_factory=dict)
    usage: bool = True
    delay: float = 0.0

    async def __call__(self, exchange: Exchange) -> None:
        if self.delay:
            await exchange.pause(self.delay)
        count = exchange.body.get("n") or 1
        message = {"role": "assistant", "content": self.text, **self.message}
        choices = [{"index": i, "message": message, "finish_reason": "stop", **self.choice} for i in range(count)]
        value = {**UPSTREAM_HEAD, "object": "chat.completion", "choices": choices}
        if self.usage:
            exchange.usage = value["usage"] = usage_of(exchange.body, count * len((self.text or "").split()))
        data = json.dumps({**value, **self.top}).encode()
        await exchange.head(200, {"content-type": "application/json"}, len(data))
        await exchange.write(data)
        await exchange.end()


@dataclass(frozen=True)
class Stream:
    """A stream of one delta per piece (a str is content; a dict is a delta as it is).

    usage: "last" (chunk of its own, if asked for), "merged" (in the finish chunk), "continuous", "none".
    cut_after, error_after, hang_after: events after which it goes wrong.
    split: bytes per write. joined: all in one write.
    """

    pieces: Iterable[str | Json] = ("Hel", "lo ", "there.")
    interval: float = 0.0
    usage: str = "last"
    finish: str = "stop"
    top: Json = field(default_factory=dict)
    eol: bytes = b"\n"
    comments: bool = False
    joined: bool = False
    split: int = 0
    done: bool = True
    role: bool = True
    cut_after: int | None = None
    error_after: int | None = None
    hang_after: int | None = None

    def events(self, exchange: Exchange) -> list[tuple[bytes, Json | None]]:
        """(event, usage that it carries) in order, without [DONE]."""
        count = exchange.body.get("n") or 1
        pieces = list(self.pieces)
        total = usage_of(exchange.body, len(pieces) * count)
        deltas = [{"role": "assistant", "content": None}] * self.role
        deltas += [{"content": piece} if isinstance(piece, str) else piece for piece in pieces]
        chunks: list[Json] = [
            {"choices": [{"index": i, "delta": delta, "logprobs": None, "finish_reason": None}]}
            for delta in deltas
            for i in range(count)
        ]
        if self.usage == "continuous":
            for sent, chunk in enumerate(chunks, 1 - count * self.role):
                chunk["usage"] = usage_of(exchange.body, max(sent, 0))
        if self.finish:
            chunks += [{"choices": [{"index": i, "delta": {}, "finish_reason": self.finish}]} for i in range(count)]
        asked = (exchange.body.get("stream_options") or {}).get("include_usage")
        if self.usage == "merged":
            chunks[-1]["usage"] = total
        elif self.usage in ("last", "continuous") and asked:
            chunks.append({"choices": [], "usage": total})
        head = {**UPSTREAM_HEAD, "object": "chat.completion.chunk"}
        return [
            (
                b"data: " + json.dumps({**head, **chunk, **self.top}).encode() + self.eol * 2,
                chunk.get("usage"),
            )
            for chunk in chunks
        ]

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.head(200, {"content-type": "text/event-stream"})
        events = self.events(exchange)
        if self.joined or self.split:
            await self._write_bytes(exchange, b"".join(event for event, _ in events))
            exchange.usage = events[-1][1]
        else:
            for number, (event, usage) in enumerate(events):
                if await self._went_wrong(exchange, number):
                    return
                if self.comments:
                    await exchange.write(b": OPENROUTER PROCESSING" + self.eol * 2)
                await exchange.write(event)
                exchange.events, exchange.usage = number + 1, usage or exchange.usage
                if self.interval:
                    await exchange.pause(self.interval)
            if await self._went_wrong(exchange, len(events)):
                return
        if self.done:
            await exchange.write(b"data: [DONE]" + self.eol * 2)
        await exchange.end()

    async def _write_bytes(self, exchange: Exchange, data: bytes) -> None:
        step = self.split or len(data)
        for start in range(0, len(data), step):
            await exchange.write(data[start : start + step])
            await asyncio.sleep(0.0005 if self.split else 0)  # so that each write is a read of its own

    async def _went_wrong(self, exchange: Exchange, number: int) -> bool:
        if number == self.hang_after:
            await exchange.hang()
        if number == self.error_after:
            fault = {"error": {"message": "acme-llm-7.example.com: worker died", "code": 500}}
            await exchange.write(b"data: " + json.dumps(fault).encode() + self.eol * 2)
            await exchange.end()
            return True
        if number == self.cut_after:
            exchange.cut()
            return True
        return False


def named(name: str) -> Script | None:
    """A script by a model's name: `words-50-every-20` (ms), `cut-3`, `error-429`, `hang`, …"""
    word, *numbers = re.sub(r"[^a-z0-9]+", " ", name).split() or [""]
    count = [int(number) for number in numbers if number.isdigit()]
    first = count[0] if count else 0
    interval = count[1] / 1000 if len(count) > 1 else 0.0
    scripts: dict[str, Callable[[], Script]] = {
        "words": lambda: _either(Answer("".join(words(first))), Stream(words(first), interval)),
        "slow": lambda: _either(Answer(delay=first / 1000), Stream(interval=first / 1000)),
        "cut": lambda: _either(truncated(), Stream(words(first + 5), interval, cut_after=first)),
        "fault": lambda: _either(error(500), Stream(words(first + 5), interval, error_after=first)),
        "stall": lambda: _either(hang, Stream(words(first + 5), interval, hang_after=first)),
        "unmetered": lambda: _either(Answer(usage=False), Stream(words(first or 3), interval, usage="none")),
        "merged": lambda: _either(Answer(), Stream(words(first or 3), interval, usage="merged")),
        "error": lambda: error(first or 500, headers={"retry-after": "7"} if first in (429, 503) else None),
        "html": lambda: html(first or 502),
        "truncated": truncated,
        "hang": lambda: hang,
        "drop": lambda: drop,
    }
    return scripts[word]() if word in scripts else None


def _either(answer: Script, stream: Script) -> Script:
    async def script(exchange: Exchange) -> None:
        await (stream if exchange.body.get("stream") else answer)(exchange)

    return script


DEFAULT = _either(Answer(), Stream())
