"""The thread through which a process tells the others of its breakers, and hears of theirs.

It has a connection of its own and is the only place where the board waits for a database. One that is away harms
nobody: what is to be told waits (the newest of it, if it is long), and claims are decided in the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

from django.db import DataError, Error, connection

from gateway.failover import circuits
from gateway.failover.circuits import Author, Trouble

log = logging.getLogger(__name__)

POLL_S = 0.5
MOST_UNTOLD = 1000
_SESSION = "SET lock_timeout = '1s'; SET statement_timeout = '3s'; SET application_name = 'counterfoil health'"


class News(NamedTuple):
    """What is to be written of one deployment."""

    deployment_id: int
    write: Callable[[Author, float], object]  # with its age in seconds
    answer: Callable[[Any], None] | None = None  # for a claim: True or False, None if the database is away
    at: float = 0.0

    @property
    def waits(self) -> bool:
        """Whether it is worth writing later."""
        return self.answer is None


class Listener(Protocol):
    """The board. Called in the loop's thread."""

    def told(self, deployment_id: int) -> None: ...

    def hear(self, troubles: list[Trouble]) -> None: ...


class Sharer(threading.Thread):
    def __init__(self, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        super().__init__(name="counterfoil-health", daemon=True)
        self.author = Author(uuid4(), f"{socket.gethostname()[:80]} {os.getpid()}")
        self.down = False
        self._loop = loop
        self._listener = listener
        self._inbox: queue.SimpleQueue[News | None] = queue.SimpleQueue()
        self._untold: deque[News] = deque()
        self._next_poll = 0.0
        self._connected = False

    # ---- for the loop's thread ----

    def tell(self, news: News) -> None:
        self._inbox.put(news._replace(at=time.monotonic()))

    async def claim(self, deployment_id: int) -> bool | None:
        """None: the database is away."""
        future: asyncio.Future[bool | None] = self._loop.create_future()
        self.tell(News(deployment_id, lambda author, _: circuits.claim(author, deployment_id), _answerer(future)))
        return await future

    def end(self) -> None:
        """Write what is there, then end."""
        self._inbox.put(None)

    # ---- the thread ----

    def run(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            self._hang_up()

    def _turn(self) -> bool:
        """False when it was the last one."""
        go_on = self._gather()
        try:
            self._connect()
            self._write()
            if go_on and time.monotonic() >= self._next_poll:
                self._poll()
        except Error as exc:
            self._lost(exc)
        except Exception:
            log.exception("Sharing the health of deployments stumbled")
            self._hang_up()
            self._next_poll = time.monotonic() + POLL_S
        return go_on

    def _gather(self) -> bool:
        wait_s = max(0.0, self._next_poll - time.monotonic())
        try:
            news = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
            while news is not None:
                self._untold.append(news)
                news = self._inbox.get_nowait()
            return False
        except queue.Empty:
            return True

    def _connect(self) -> None:
        if self._connected:
            return
        connection.ensure_connection()
        with connection.cursor() as cursor:
            cursor.execute(_SESSION)
        self._connected = True

    def _write(self) -> None:
        while self._untold:
            news = self._untold[0]
            outcome: object = None
            try:
                outcome = news.write(self.author, time.monotonic() - news.at)
            except DataError:
                log.exception("The health of deployment %d could not be written", news.deployment_id)
            self._untold.popleft()
            self._done(news, outcome)

    def _poll(self) -> None:
        self._next_poll = time.monotonic() + POLL_S
        troubles = circuits.troubled()
        if self.down:
            log.warning("The database is back: the health of deployments is shared again")
        self.down = False
        self._call(self._listener.hear, troubles)

    def _lost(self, exc: Error) -> None:
        """The database is away, or does not know our tables yet: this process decides by what it knows."""
        self._hang_up()
        self._next_poll = time.monotonic() + POLL_S
        if not self.down:
            log.warning("The health of deployments is not shared at the moment: %s", exc)
        self.down = True
        kept = [news for news in self._untold if news.waits]
        for news in [*(news for news in self._untold if not news.waits), *kept[:-MOST_UNTOLD]]:
            self._done(news, None)
        self._untold = deque(kept[-MOST_UNTOLD:])

    def _done(self, news: News, outcome: object) -> None:
        if news.answer is not None:
            self._call(news.answer, outcome)
        else:
            self._call(self._listener.told, news.deployment_id)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
            self._loop.call_soon_threadsafe(function, *args)

    def _hang_up(self) -> None:
        self._connected = False
        try:
            connection.close()
        except Error:
            log.debug("Closing the connection failed", exc_info=True)


def _answerer(future: asyncio.Future[bool | None]) -> Callable[[bool | None], None]:
    def answer(won: bool | None) -> None:
        if not future.done():
            future.set_result(won)

    return answer
