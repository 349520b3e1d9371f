"""The keys that this process knows: facts of callers in memory, filled on demand from the database.

Known keys cost no query: their facts carry versions that admission compares (design.md 2, "Snapshots and
freshness"). Unknown ones are looked up in batches, at most 50 a second however many clients ask, each id once
at a time. That there is no such key, or that a secret is wrong, is remembered for a while, so a flood of
invented keys costs the database nothing. The digests of imported API_KEYS, which name no id, are all in memory;
any other text is refused here.

Everything here happens on one event loop; the queries run in the reader thread of `gateway.snapshots`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping

from gateway import snapshots
from gateway.errors import GatewayError, InternalError, Unavailable
from tenants.facts import Caller, load_callers, load_imported

log = logging.getLogger(__name__)

KNOWN = 50_000  # callers in memory, some 2 kB each
UNKNOWN = 50_000  # ids known not to exist, and digests known to be wrong
UNKNOWN_SECONDS = 30.0
SPACING_SECONDS = 0.02  # 50 look-ups a second
BATCH = 500  # ids in one look-up
WAITING = 5_000  # ids waiting for one; beyond it 503 instead of memory
IMPORTED_SECONDS = 10.0  # an unknown text makes the imported digests be read again, at most this often

Waiters = dict[str, "asyncio.Future[Caller | None]"]


class KeyRing:
    def __init__(self) -> None:
        self._known: OrderedDict[str, Caller] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()  # public id -> until when (monotonic)
        self._wrong: OrderedDict[bytes, float] = OrderedDict()  # digest of a known key's wrong secret -> until when
        self._imported: dict[bytes, str] = {}  # digest -> public id
        self._imported_at: float | None = None
        self._importing: asyncio.Task[None] | None = None
        self._waiting: Waiters = {}  # for the next look-up
        self._flying: Waiters = {}  # in the look-up under way
        self._worker: asyncio.Task[None] | None = None
        self._looked_at = 0.0

    async def find(self, public_id: str) -> Caller | None:
        """The key with this id, as the database knew it at some time; None if there is none."""
        caller = self._known.get(public_id)
        if caller is not None:
            self._known.move_to_end(public_id)
            return caller
        until = self._unknown.get(public_id)
        if until is not None:
            if until > time.monotonic():
                return None
            del self._unknown[public_id]
        flying = self._flying.get(public_id)
        if flying is not None and flying.get_loop() is asyncio.get_running_loop():
            return await asyncio.shield(flying)
        return await self._look_up(public_id)

    async def reread(self, public_id: str) -> Caller | None:
        """The key as the database knows it now: by a query that begins after this call."""
        return await self._look_up(public_id)

    def is_wrong(self, digest: bytes) -> bool:
        """True if the database has said lately that no secret has this digest."""
        until = self._wrong.get(digest)
        return until is not None and until > time.monotonic()

    def remember_wrong(self, digest: bytes) -> None:
        self._wrong.pop(digest, None)
        self._wrong[digest] = time.monotonic() + UNKNOWN_SECONDS
        self._trim()

    async def find_imported(self, digest: bytes) -> Caller | None:
        """The key that an imported secret belongs to."""
        now = time.monotonic()
        if self._imported_at is None:
            await self.refresh_imported()
        elif digest not in self._imported and now - self._imported_at > IMPORTED_SECONDS:
            # API_KEYS may have been imported since; while the database is away the old digests do.
            self._imported_at = now
            with contextlib.suppress(Unavailable):
                await self.refresh_imported()
        public_id = self._imported.get(digest)
        return None if public_id is None else await self.find(public_id)

    async def refresh_imported(self) -> None:
        """Read the digests of API_KEYS again; callers at the same time share one query."""
        task = self._importing
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            task = self._importing = asyncio.create_task(self._import())
        await asyncio.shield(task)

    async def _import(self) -> None:
        try:
            imported = await snapshots.read(load_imported)
        except Exception as exc:
            raise _fault(exc) from exc
        self._imported = {digest: caller.public_id for digest, caller in imported.items()}
        self._imported_at = time.monotonic()
        for caller in imported.values():
            # Only what is not known yet: the row read here may be older than the one that a reload has read.
            self._known.setdefault(caller.public_id, caller)
        self._trim()

    async def _look_up(self, public_id: str) -> Caller | None:
        loop = asyncio.get_running_loop()
        if self._worker is None or self._worker.done() or self._worker.get_loop() is not loop:
            self._waiting, self._flying = {}, {}
            self._worker = loop.create_task(self._work())
        future = self._waiting.get(public_id)
        if future is None:
            if len(self._waiting) >= WAITING:
                raise Unavailable("The service is temporarily overloaded. Please try again.")
            future = self._waiting[public_id] = loop.create_future()
        # Shielded: one client that leaves must not take the answer from the others who wait for this key.
        return await asyncio.shield(future)

    async def _work(self) -> None:
        """Look up what is waiting, batch by batch, until nothing is."""
        while self._waiting:
            pause = self._looked_at + SPACING_SECONDS - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            self._looked_at = time.monotonic()
            batch = list(self._waiting)[:BATCH]
            self._flying = {public_id: self._waiting.pop(public_id) for public_id in batch}
            try:
                found = await snapshots.read(load_callers, batch)
            except Exception as exc:
                self._fail(_fault(exc))
            else:
                self._learn(batch, found)
            self._flying = {}

    def _learn(self, batch: Collection[str], found: Mapping[str, Caller]) -> None:
        until = time.monotonic() + UNKNOWN_SECONDS
        for public_id in batch:
            caller = found.get(public_id)
            if caller is None:
                self._known.pop(public_id, None)
                self._unknown[public_id] = until
                self._unknown.move_to_end(public_id)
            else:
                self._known[public_id] = caller
                self._known.move_to_end(public_id)
            future = self._flying[public_id]
            if not future.done():
                future.set_result(caller)
        self._trim()

    def _fail(self, fault: GatewayError) -> None:
        for future in self._flying.values():
            if not future.done():
                future.set_exception(fault)
                future.exception()  # all who waited may have left: not an error of its own

    def _trim(self) -> None:
        while len(self._known) > KNOWN:
            self._known.popitem(last=False)
        while len(self._unknown) > UNKNOWN:
            self._unknown.popitem(last=False)
        while len(self._wrong) > UNKNOWN:
            self._wrong.popitem(last=False)


def _fault(exc: Exception) -> GatewayError:
    """Why a look-up failed, for the client: the database is away (Unavailable), or a defect of ours."""
    if isinstance(exc, GatewayError):
        return exc
    log.error("keys cannot be looked up", exc_info=exc)
    return InternalError()


ring = KeyRing()
# A moved catalogue version may mean new or withdrawn API_KEYS.
snapshots.listeners.append(ring.refresh_imported)
