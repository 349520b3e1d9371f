"""What a provider can do wrong, as scripts: streams that go wrong after some events, whole answers that lie.

Their words begin with x, those of a healthy deployment with w: a client that has both in one answer was switched.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.upstream_scripts import UPSTREAM_HEAD, Exchange, Json, Stream, usage_of

DONE = b"data: [DONE]\n\n"
JSON, SSE = {"content-type": "application/json"}, {"content-type": "text/event-stream"}
Then = Callable[[Exchange], Awaitable[None]]
WORDS = 9


def own(count: int = WORDS) -> list[str]:
    return [f"x{number} " for number in range(count)]


@dataclass(frozen=True)
class Wrong:
    """A stream: `good` events of content, its end (finish, usage), `tail` as it is, and then `then`.

    usage: "right", or whatever is to be said; None: nothing.
    """

    good: int = WORDS
    finish: str = "stop"
    usage: Any = "right"
    tail: bytes = DONE
    then: Then | None = None  # None: a clean end
    interval: float = 0.0
    piece: str = ""  # instead of words
    split: int = 0  # bytes per write

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.head(200, SSE)
        pieces = [self.piece] * self.good if self.piece else own(self.good)
        events = Stream(pieces, finish=self.finish, usage="none", role=bool(self.good)).events(exchange)
        for event, _ in events:
            await self._write(exchange, event)
            exchange.events += 1
        right = usage_of(exchange.body, self.good)
        said = right if self.usage == "right" else self.usage
        if said is not None:
            await exchange.write(_event({"choices": [], "usage": said}))
        exchange.usage = believable(right if self.usage == "right" else said)
        await self._write(exchange, self.tail)
        if self.then is not None:
            return await self.then(exchange)
        await exchange.end()

    async def _write(self, exchange: Exchange, data: bytes) -> None:
        step = self.split or len(data) or 1
        for start in range(0, len(data), step):
            await exchange.write(data[start : start + step])
            if self.interval:
                await exchange.pause(self.interval)


@dataclass(frozen=True)
class Whole:
    """A whole answer: `usage` as above, only `share` of its bytes, a Content-Length that is `off` by so much."""

    usage: Any = "right"
    share: float = 1.0
    off: int = 0
    text: str = "".join(own())
    then: Then | None = None
    right_length: bool = True  # of what is sent; False: of the whole

    async def __call__(self, exchange: Exchange) -> None:
        data = answer(exchange.body, self.text, self.usage)
        sent = data[: int(len(data) * self.share)]
        if self.then is None and not self.off and self.share == 1.0:
            exchange.usage = believable(usage_of(exchange.body, WORDS) if self.usage == "right" else self.usage)
        await exchange.head(200, JSON, len(sent if self.right_length else data) + self.off)
        await exchange.send_raw(sent)
        if self.then is not None:
            return await self.then(exchange)
        await exchange.end()


def believable(said: Any) -> Json | None:
    """What may be booked as it was said: whole numbers of tokens, in the order of magnitude of an answer."""
    found = isinstance(said, dict) and [said.get(name) for name in ("prompt_tokens", "completion_tokens")]
    return said if found and all(type(count) is int and 0 <= count < 10**9 for count in found) else None


def answer(body: Json, text: str, usage: Any = "right") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    value: Json = {**UPSTREAM_HEAD, "object": "chat.completion", "choices": [choice]}
    said = usage_of(body, WORDS) if usage == "right" else usage
    if said is not None:
        value["usage"] = said
    return json.dumps(value).encode()


def _event(value: Json) -> bytes:
    return b"data: " + json.dumps({**UPSTREAM_HEAD, "object": "chat.completion.chunk", **value}).encode() + b"\n\n"


async def cut(exchange: Exchange) -> None:
    exchange.cut()


async def reset(exchange: Exchange) -> None:
    exchange.reset()


async def hang(exchange: Exchange) -> None:
    await exchange.hang()


async def half_chunk(exchange: Exchange) -> None:
    """A chunk is announced, and half of it comes."""
    await exchange.send_raw(b'100\r\ndata: {"id":"x","choices":[{"index":0,"delta":{"content":"x')
    exchange.cut()


async def not_http(exchange: Exchange) -> None:
    await exchange.send_raw(b"220 mail.example.com ESMTP\r\n\r\n")
    exchange.cut()


async def reset_after_head(exchange: Exchange) -> None:
    await exchange.head(200, SSE)
    await exchange.pause(0.02)  # so that it arrives before the RST
    exchange.reset()


async def hang_after_head(exchange: Exchange) -> None:
    await exchange.head(200, SSE)
    await exchange.hang()


def first_times(count: int, bad: Then, good: Then) -> Then:
    """`bad` for the first so many requests of a deployment, then `good`."""
    seen = 0

    async def script(exchange: Exchange) -> None:
        nonlocal seen
        seen += 1
        await (bad if seen <= count else good)(exchange)

    return script
