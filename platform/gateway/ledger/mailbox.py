"""Where the event loops leave tickets for the writer thread."""

from __future__ import annotations

import contextlib
import threading
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A queue with a bell. Putting something in wakes nobody, since waking a thread costs more than all else:
    one ring does for all that a turn of the event loop has brought. Reentrant: the garbage collector may put.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[T] = SimpleQueue()
        self._bell = threading.Lock()  # rung by being released; a ring that nobody waits for is kept
        self._bell.acquire()

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, thing: T) -> None:
        self._queue.put(thing)

    def ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # rung already
            self._bell.release()

    def take(self, most: int, *, wait_s: float) -> list[T]:
        """What is there, in order; if nothing is, waits for the bell, but no longer than this."""
        if wait_s and self._queue.empty():
            self._bell.acquire(timeout=wait_s)
        things: list[T] = []
        with contextlib.suppress(Empty):
            while len(things) < most:
                things.append(self._queue.get_nowait())
        return things
