"""Answers that are made apart from the client that asked for them, so that they are made even if its line breaks.

The producer runs the pipeline's stream to its end and keeps what it said; the client reads from its buffer. The
buffer is bounded by what may be kept (IDEMPOTENCY_MAX_BYTES): beyond it the answer is not kept, the producer waits
for its reader, and a client that leaves ends it, as without the header.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

from django.conf import settings

from gateway import pipeline
from gateway.errors import Unavailable
from gateway.pipeline import DONE, Call
from gateway.replies import running
from gateway.replies.claim import Claim


class Production:
    def __init__(self, call: Call, claim: Claim) -> None:
        self._call = call
        self._claim = claim
        self._kept: list[bytes] | None = []  # None: it has grown too large
        self._size = 0
        self._unread: deque[bytes] = deque()
        self._open = self._ended = self._left = False
        self._whole = False  # and in the books
        self._fault: BaseException | None = None
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._task = running.start(self._run())

    # ---- the producer ----

    async def _run(self) -> None:
        try:
            async with aclosing(await pipeline.open_stream(self._call)) as events:
                self._open = True
                self._news.set()
                last = b""
                async for part in events:
                    self._whole = part.endswith(DONE)
                    await self._take(part)
                    if self._whole:  # not before it is kept
                        last = part
                    else:
                        self._give(part)
                    await self._read_up()
            if self._kept is not None:
                await self._claim.keep(b"".join(self._kept), self._call.headers)
            self._give(last)
        except BaseException as exc:
            self._fault = exc
            if self._left and self._kept is None:
                await self._claim.give_up_content()
            elif not self._whole:  # else it was charged: our process ends, and who asks again is told that it is lost
                await self._claim.release()
            raise
        finally:
            self._ended = True
            self._news.set()

    async def _take(self, part: bytes) -> None:
        self._size += len(part)
        if self._kept is None:
            return
        self._kept.append(part)
        if self._size > settings.IDEMPOTENCY_MAX_BYTES:
            self._kept = None
            await self._claim.give_up_content()
            if self._left:
                self._task.cancel()

    def _give(self, part: bytes) -> None:
        if part and not self._left:
            self._unread.append(part)
            self._news.set()

    async def _read_up(self) -> None:
        """An answer that is not kept goes at the pace of its reader."""
        while self._kept is None and self._unread and not self._left:
            self._room.clear()
            await self._room.wait()

    # ---- the client ----

    async def opened(self) -> None:
        """Returns when there is something to read; raises what kept it from opening."""
        while not (self._open or self._ended):
            await self._hear()
        if not self._open:
            raise self._error()

    async def next_part(self) -> bytes:
        """Empty at the end. Raises how it broke off."""
        while not self._unread:
            if self._ended:
                if self._fault is not None:
                    raise self._error()
                return b""
            await self._hear()
        part = self._unread.popleft()
        self._room.set()
        return part

    def leave(self) -> None:
        """Nobody reads any more."""
        self._left = True
        self._unread.clear()
        self._room.set()
        if self._kept is None:
            self._task.cancel()

    async def _hear(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _error(self) -> Exception:
        if isinstance(self._fault, Exception):
            return self._fault
        return Unavailable("The server is shutting down. Please try again.")


class Reader(AsyncIterator[bytes]):
    """The client's side of a production, as the view takes it: closed when the client leaves, or forgotten."""

    def __init__(self, production: Production) -> None:
        self._production = production
        self._loop = asyncio.get_running_loop()
        self._closed = False

    async def __anext__(self) -> bytes:
        part = await self._production.next_part()
        if not part:
            raise StopAsyncIteration
        return part

    async def aclose(self) -> None:
        self._closed = True
        self._production.leave()

    def __del__(self) -> None:
        # Dropped before its first step: the producer must not wait for it. Any thread may collect garbage.
        with suppress(RuntimeError):  # the loop has ended
            if not self._closed:
                self._loop.call_soon_threadsafe(self._production.leave)


async def open_stream(call: Call, claim: Claim) -> Reader:
    """As pipeline.open_stream, but it goes on if the client does not."""
    production = Production(call, claim)
    try:
        await production.opened()
    except BaseException:
        production.leave()
        raise
    return Reader(production)


async def complete(call: Call, claim: Claim) -> bytes:
    """As pipeline.complete, likewise."""
    return await asyncio.shield(running.start(_complete(call, claim)))


async def _complete(call: Call, claim: Claim) -> bytes:
    try:
        answer = await pipeline.complete(call)
    except BaseException:
        await claim.release()
        raise
    if len(answer) > settings.IDEMPOTENCY_MAX_BYTES:
        await claim.give_up_content()
    else:
        await claim.keep(answer, call.headers)
    return answer
