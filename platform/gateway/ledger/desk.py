"""The desk: the one writer of the books in a process, seen from asyncio (the only async seam of the ledger).

`admit` returns when the hold is durable, `settle` when the record is. Both go through the writer thread's
next batch (`ledger.writer`); a caller that is cancelled while it waits leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from gateway import timeouts
from gateway.errors import Unavailable
from gateway.ledger.items import EarlyRefusal, Ending, Gate, Item, Order, check
from gateway.ledger.writer import Outcome, Ticket, Writer
from gateway.limits.refusals_log import Sampler
from gateway.telemetry import metrics
from tenants.facts import Caller

log = logging.getLogger(__name__)

MAX_WAITING = 4096  # admissions; beyond it 503 instead of memory
ADMISSION_SECONDS = 10.0
STOP_SECONDS = 8.0


class Desk:
    def __init__(self, writer: Writer | None = None) -> None:
        self.writer = writer or Writer(self._deliver)
        self._waiting = 0
        self._refusals = Sampler()
        self._ringing: asyncio.AbstractEventLoop | None = None  # it will ring for all that was given in this turn
        # First used by us: the snapshot does not know it until the catalogue is read again, and each batch that
        # marks a price costs PostgreSQL two more statements.
        self._used_prices: set[int] = set()
        self.writer.start()

    @property
    def alive(self) -> bool:
        return self.writer.is_alive() and not (self.writer.down or self.writer.stuck)

    async def admit(self, order: Order) -> tuple[str, Any]:
        """ok (the hold is durable, the order knows when it started), stale, refused, suspended, window, limited or
        full (no candidate has room).

        With it: the database's clock (window), the states of all claims (limited), or the milliseconds until a
        candidate has room, None if that is when something ends, or never (full).
        """
        tenant, key_id, heat = order.caller.tenant_id, order.caller.key_id, self.writer.heat
        item = order.admission(heat.shard_of(tenant))
        fresh = item.get("first_use")
        if fresh is not None and self._used_prices.issuperset(fresh):
            del item["first_use"]
        if order.claims:
            item["claims"] = heat.spread(order.claims, tenant)
            item["keep"] = self._refusals.weight(key_id)
        row = await self._decide_kept(item, "limited")
        if row[1] == "ok":
            if row[2] is None:  # sent twice, and swept in between: too late to begin
                raise Unavailable("The service is temporarily unavailable.", retry_after=1)
            if fresh is not None:
                self._used_prices.update(fresh)
            order.started_at, order.local_date, order.admitted_state = row[2], row[3], row[4]
            if order.candidates:
                order.deployment_id, order.provider_id = row[5], row[6]
            return "ok", None
        if row[1] == "limited":
            return "limited", row[4]
        return str(row[1]), row[2] if len(row) > 2 else None

    async def move(self, order: Order, candidates: Sequence[Gate]) -> bool:
        """Another attempt, at the first of these with room: the order then says which. False: none has.

        To be asked if one of them is limited, and of an order that is `gated`: it leaves its deployment's gate.
        Raises Unavailable as `admit` does; then the order is where it was.
        """
        row = await self._decide(order.move(candidates))
        if row[1] != "ok":
            return False
        order.deployment_id, order.provider_id = row[2], row[3]
        return True

    async def check(
        self, caller: Caller, catalogue_version: int, request_id: UUID, refusal: EarlyRefusal | None = None
    ) -> str:
        """As `admit`, without a hold. A refusal that proves to be on fresh facts (ok) is kept."""
        item = check(caller, catalogue_version, request_id)
        if refusal is not None:
            item |= refusal.item(self._refusals.weight(caller.key_id))
        return str((await self._decide_kept(item, "ok"))[1])

    def settle(self, order: Order, ending: Ending) -> asyncio.Future[Any]:
        """Book the end of an admitted request. It is written whether or not anybody awaits the future."""
        return self._give(order.settlement(ending))

    def book(self, order: Order, ending: Ending) -> None:
        """As `settle`, for who cannot wait. Needs no event loop: the garbage collector calls from any thread."""
        self.writer.queue.put(Ticket(order.settlement(ending)))
        self.writer.queue.ring()

    async def _decide_kept(self, item: Item, refused: str) -> list[Any]:
        """Decided, and counted if the verdict is `refused`: one that is kept stands for those that are not."""
        if "keep" not in item:
            return await self._decide(item)
        key_id, weight = item["key_id"], item["keep"]
        try:
            row = await self._decide(item)
        except BaseException:
            self._refusals.spare(key_id, weight)
            raise
        if row[1] == refused:
            self._refusals.refused(key_id, kept=weight is not None)
        else:
            self._refusals.spare(key_id, weight)
        return row

    async def _decide(self, item: Item) -> list[Any]:
        if max(self._waiting, len(self.writer.queue)) >= MAX_WAITING:
            raise Unavailable("The service is temporarily overloaded. Please try again.", retry_after=1)
        if not self.alive:
            raise Unavailable("The service is temporarily unavailable.", retry_after=2)
        self._waiting += 1
        try:
            future = self._give(item)
            timeout = timeouts.call_later(future.get_loop(), ADMISSION_SECONDS, _too_late, future)
            try:
                row: list[Any] = await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled() and future.exception() is None:
                    # It left in the very turn of the loop in which it was answered: `_resolve` saw it waiting.
                    self._undo(item)
                raise
            finally:
                timeout.cancel()
            return row
        finally:
            self._waiting -= 1

    def _give(self, item: Item) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self.writer.queue.put(Ticket(item, loop, future))
        if self._ringing is not loop:
            self._ringing = loop
            loop.call_soon(self._ring)
        return future

    def _ring(self) -> None:
        self._ringing = None
        metrics.desk_queue(len(self.writer.queue))  # the writer says it too, but not while its database hangs
        self.writer.queue.ring()

    def _deliver(self, outcomes: list[tuple[Ticket, Outcome]]) -> None:
        """In the writer's thread: one wake-up of each event loop for the whole batch."""
        loops = {ticket.loop for ticket, _ in outcomes}
        for loop in loops:
            mine = outcomes if len(loops) == 1 else [o for o in outcomes if o[0].loop is loop]
            try:
                if loop is not None:
                    loop.call_soon_threadsafe(self._resolve, mine)
            except RuntimeError:  # the loop has ended: nobody waits any more
                self._release([ticket for ticket, outcome in mine if isinstance(outcome, list)])

    def _resolve(self, outcomes: list[tuple[Ticket, Outcome]]) -> None:
        left: list[Ticket] = []
        for ticket, outcome in outcomes:
            if ticket.future.done():  # its caller went away while it was queued
                left.append(ticket)
            elif isinstance(outcome, list):
                ticket.future.set_result(outcome)
            else:
                ticket.future.set_exception(outcome)
                if ticket.must_be_kept:
                    ticket.future.exception()  # nobody may be waiting for a settlement; do not warn of it
        if left:
            self._release(left)

    def _release(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            self._undo(ticket.item)

    def _undo(self, item: Item) -> None:
        if item["op"] == "a":
            self.writer.queue.put(Ticket({**item, "op": "r"}))
            self.writer.queue.ring()

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """Write what is left; returns how many items could not be written (their holds stay for the sweeper)."""
        self.writer.stop(seconds)
        self.writer.join(seconds + 2)
        return self.writer.unwritten


def _too_late(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(Unavailable("The service is temporarily overloaded. Please try again.", retry_after=2))


_current: Desk | None = None
_lock = threading.Lock()


def start() -> Desk:
    """The process's desk, started on first use."""
    global _current
    with _lock:
        if _current is None:
            _current = Desk()
        return _current


def current() -> Desk:
    return _current or start()


def stop(seconds: float = STOP_SECONDS) -> int:
    """Flush and end the process's desk, if there is one."""
    global _current
    with _lock:
        desk, _current = _current, None
    return desk.stop(seconds) if desk is not None else 0
