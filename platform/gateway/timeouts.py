"""Timers that nearly always are cancelled: time-outs, of which every request sets some.

One of asyncio's costs 5 us of a request: an object, a place in a heap, and the sweeping of those that were cancelled.
One of these costs 1 us. Those of one length end in the order in which they were set, so that one timer of asyncio's,
for the oldest, does for all of them. Not for lengths that are different each time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextvars import copy_context
from typing import Any


class Timeout:
    """As asyncio.TimerHandle."""

    __slots__ = ("_args", "_callback", "_context", "_due", "_handle", "_row")

    def __init__(self, row: _Row, due: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._row, self._due, self._callback, self._args = row, due, callback, args
        self._context = copy_context()  # what it does is done for who set it, not for who set the oldest
        self._handle: asyncio.Handle | None = None

    def cancel(self) -> None:
        """Idempotent. Once it has run nothing happens."""
        self._row.waiting.pop(self, None)
        if self._handle is not None:
            self._handle.cancel()


class _Row:
    """All of one length on one loop, the oldest first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.loop, self.seconds = loop, seconds
        self.waiting: OrderedDict[Timeout, None] = OrderedDict()
        self._timed = False

    def add(self, callback: Callable[..., object], args: tuple[Any, ...]) -> Timeout:
        timeout = Timeout(self, self.loop.time() + self.seconds, callback, args)
        self.waiting[timeout] = None
        if not self._timed:
            self._timed = True
            self.loop.call_at(timeout._due, self._ring)
        return timeout

    def _ring(self) -> None:
        now = self.loop.time()
        while self.waiting:
            timeout = next(iter(self.waiting))
            if timeout._due > now:
                self.loop.call_at(timeout._due, self._ring)
                return
            del self.waiting[timeout]
            timeout._handle = self.loop.call_soon(timeout._callback, *timeout._args, context=timeout._context)
        self._timed = False
        if _rows.get(self.seconds) is self:
            _rows.pop(self.seconds, None)  # a loop in another thread may have been quicker


_rows: dict[float, _Row] = {}  # of the loop that asked last: nearly always the same


def call_later(
    loop: asyncio.AbstractEventLoop, seconds: float, callback: Callable[..., object], *args: Any
) -> Timeout:
    """As the loop's own. To be called in the loop's thread."""
    row = _rows.get(seconds)
    if row is None or row.loop is not loop:
        row = _rows[seconds] = _Row(loop, seconds)
    return row.add(callback, args)
