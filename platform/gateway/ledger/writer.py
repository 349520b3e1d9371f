"""The writer thread: gathers what arrived while the last batch was under way, and books it in one round trip.

Rules (design.md 2): a batch whose outcome is unknown is sent again; a bad item is found by halving and fails
alone; a locked counter sets its own keys apart and nobody else's; settlements are never dropped while the
process lives; admissions are refused at once while the database is away.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from gateway.errors import GatewayError, InternalError, Unavailable
from gateway.identifiers import wire_id
from gateway.ledger.heat import Heat
from gateway.ledger.items import Item
from gateway.ledger.link import BatchRefused, Link, LinkLost, RowLocked
from gateway.ledger.mailbox import Mailbox
from gateway.telemetry import metrics

log = logging.getLogger(__name__)

MAX_BATCH = 256
BEAT_SECONDS = 5.0
PARKED_RETRY_SECONDS = 0.05
PARKED_PATIENCE_SECONDS = 5.0
HALVING_SECONDS = 1.0  # then the rest of a batch that waits for locks is set apart untried
STUCK_SECONDS = 10.0
RECONNECT_SECONDS = 0.25

Outcome = list[Any] | GatewayError


class Ticket:
    """An item and where its outcome goes."""

    __slots__ = ("answered", "future", "given_at", "item", "loop", "refused", "request_id", "sent")

    def __init__(self, item: Item, loop: Any = None, future: Any = None) -> None:
        self.item = item
        self.request_id: str = item["request_id"]
        self.loop = loop
        self.future = future
        self.given_at = time.monotonic()
        self.sent = False  # an earlier try may have been committed
        self.answered = self.refused = False

    @property
    def named(self) -> dict[str, str]:
        return {"request_id": wire_id(self.request_id)}

    @property
    def must_be_kept(self) -> bool:
        return self.item["op"] in ("s", "r")

    @property
    def forsaken(self) -> bool:
        """Nobody waits for this admission any more: not worth a hold that would be released at once."""
        return not self.must_be_kept and self.future is not None and self.future.done()


class Writer(threading.Thread):
    def __init__(self, deliver: Callable[[list[tuple[Ticket, Outcome]]], None], link: Link | None = None) -> None:
        super().__init__(name="counterfoil-desk", daemon=True)
        self.queue: Mailbox[Ticket] = Mailbox()
        self.link = link or Link()
        self.heat = Heat()
        self.down = False
        self.batches = self.items = 0
        self._deliver = deliver
        self._in_hand: list[Ticket] = []
        self._backlog: list[Ticket] = []  # settlements and releases that wait for the database
        self._parked: defaultdict[int, list[Ticket]] = defaultdict(list)  # by key: its counters are locked
        self._stop_by: float | None = None
        self._next_beat = self._next_parked = self._halve_until = 0.0
        self._busy_since: float | None = None

    def stop(self, seconds: float) -> None:
        """Write what was given, for at most so long, then end."""
        self._stop_by = time.monotonic() + seconds
        self.queue.ring()

    @property
    def unwritten(self) -> int:
        return len(self.queue) + len(self._backlog) + sum(map(len, self._parked.values()))

    @property
    def stuck(self) -> bool:
        """The database has not answered for long, and the connection has not failed either (a stopped machine)."""
        since = self._busy_since
        return since is not None and time.monotonic() - since > STUCK_SECONDS

    def run(self) -> None:
        while self._stop_by is None or (self.unwritten and time.monotonic() < self._stop_by):
            try:
                self._turn()
            except Exception:
                # The desk never dies: whatever this was, what is in the backlog is tried again.
                log.exception("The desk's writer stumbled")
                self._recover()
                time.sleep(RECONNECT_SECONDS)
        try:
            if self.link.open:
                self.link.end()
        except LinkLost:
            log.warning("The process's lease could not be given back; the sweeper will see it end.")
        self.link.close()

    def _answer(self, outcomes: list[tuple[Ticket, Outcome]]) -> None:
        for ticket, _ in outcomes:
            ticket.answered = True
        self._deliver(outcomes)

    def _recover(self) -> None:
        """After a defect of ours: nothing of this turn may be lost, and what was booked is found by its id."""
        tickets = [ticket for ticket in self._in_hand if not ticket.answered]
        for ticket in tickets:
            ticket.sent = True
        try:
            self.link.close()
            self._set_aside(tickets)
        except Exception:
            log.exception("The desk's writer stumbled again while it recovered")

    def _turn(self) -> None:
        self._busy_since = None
        fresh = self._in_hand = self._gather()
        metrics.desk_queue(len(fresh) + len(self.queue))
        metrics.desk_backlog(len(self._backlog) + sum(map(len, self._parked.values())))
        self._busy_since = time.monotonic()
        if not self.link.open and not self._connect():
            self._set_aside(fresh)
            return
        if time.monotonic() >= self._next_beat:
            self._beat()
        batch, self._backlog = self._backlog[:MAX_BATCH], self._backlog[MAX_BATCH:]
        self._in_hand = [*batch, *fresh]
        self._halve_until = time.monotonic() + HALVING_SECONDS
        if self._parked:
            self._retry_parked()
            for ticket in fresh:
                lane = self._parked.get(ticket.item["key_id"]) if ticket.item["op"] != "c" else None
                (batch if lane is None else lane).append(ticket)
        else:
            batch += fresh
        if batch:
            self._write(batch)

    def _gather(self) -> list[Ticket]:
        """What has arrived; waits for the first unless there is other work to do."""
        wait_s = RECONNECT_SECONDS if not self.link.open else PARKED_RETRY_SECONDS if self._parked else 1.0
        busy = self._backlog and self.link.open
        return [t for t in self.queue.take(MAX_BATCH, wait_s=0 if busy else wait_s) if not t.forsaken]

    def _connect(self) -> bool:
        try:
            self.link.connect()
        except LinkLost as exc:
            if not self.down:
                log.error("The database is away: new requests are refused until it is back (%s)", exc)
            self.down = True
            return False
        if self.down:
            log.warning("The database is back; %d settlements to write", len(self._backlog))
        self.down = False
        self.heat.shard = self.link.shard
        self._next_beat = time.monotonic() + BEAT_SECONDS
        return True

    def _beat(self) -> None:
        self._next_beat = time.monotonic() + BEAT_SECONDS
        try:
            self.link.beat()
        except LinkLost as exc:
            log.warning("Heartbeat failed: %s", exc)
            self.link.close()
            self._connect()

    def _set_aside(self, tickets: list[Ticket]) -> None:
        """The database is away: keep settlements, refuse admissions, and undo those that may have been booked."""
        self._backlog += [ticket for ticket in tickets if ticket.must_be_kept]
        refused = [ticket for ticket in tickets if not ticket.must_be_kept]
        self._refuse(refused, lambda: Unavailable("The service is temporarily unavailable.", retry_after=2))

    def _refuse(self, tickets: list[Ticket], error: Callable[[], GatewayError]) -> None:
        """Say no to admissions; a hold that an earlier try may have left is released."""
        self._backlog += [
            Ticket({**ticket.item, "op": "r"}) for ticket in tickets if ticket.sent and ticket.item["op"] == "a"
        ]
        if tickets:
            self._answer([(ticket, error()) for ticket in tickets])

    def _write(self, batch: list[Ticket], *, skip: bool = False, again: bool = False) -> None:
        if not self.link.open:
            self._set_aside(batch)
            return
        began = time.perf_counter()
        try:
            rows = self.link.call(
                [ticket.item for ticket in batch], skip=skip, retry=any(ticket.sent for ticket in batch)
            )
        except LinkLost as exc:
            self._send_again(batch, exc, last=again)
        except RowLocked:
            if not skip:
                self._write(batch, skip=True, again=again)
            elif len(batch) == 1 or time.monotonic() > self._halve_until:
                # Each try waits for the lock: a locked table would hold up the desk, and its heartbeat, for long.
                self._park(batch)
            else:
                self._halve(batch, skip=True)
        except BatchRefused as exc:
            if len(batch) == 1:
                self._reject(batch[0], exc)
            else:
                self._halve(batch, skip=skip)
        else:
            metrics.desk_batch(len(batch), time.perf_counter() - began)
            self._hand_out(batch, rows)

    def _park(self, batch: list[Ticket]) -> None:
        for ticket in batch:
            self._parked[ticket.item["key_id"]].append(ticket)

    def _halve(self, batch: list[Ticket], *, skip: bool) -> None:
        middle = len(batch) // 2
        self._write(batch[:middle], skip=skip)
        self._write(batch[middle:], skip=skip)

    def _send_again(self, batch: list[Ticket], exc: LinkLost, *, last: bool) -> None:
        for ticket in batch:
            ticket.sent = True
        log.warning("A batch of %d has an unknown outcome and is sent again: %s", len(batch), exc)
        self.link.close()
        if last or not self._connect():
            self.link.close()
            self._set_aside(batch)
        else:
            self._write(batch, again=True)

    def _reject(self, ticket: Ticket, exc: BatchRefused) -> None:
        if ticket.must_be_kept and not exc.for_good:
            if not ticket.refused:
                log.critical("The ledger cannot book a request, and will try again: %s", exc, extra=ticket.named)
            ticket.refused = True
            self._park([ticket])
            return
        log.critical("The ledger refuses %s of a request: %s", ticket.item["op"], exc, extra=ticket.named)
        if ticket.item["op"] == "s":
            try:
                self.link.bury(ticket.item, str(exc))
            except LinkLost:
                self._backlog.append(ticket)  # not even that: keep it, and try all of it again
                self.link.close()
                return
        self._refuse([ticket], InternalError)

    def _hand_out(self, batch: list[Ticket], rows: list[list[Any]]) -> None:
        self.batches += 1
        self.items += len(batch)
        verdicts = {row[0]: row for row in rows}
        if (waits := verdicts.pop("", None)) is not None:
            self.heat.waited(waits[2])
        done: list[tuple[Ticket, Outcome]] = []
        for ticket in batch:
            row = verdicts[ticket.request_id]
            if row[1] == "blocked":
                self._park([ticket])
            elif row[1] == "again":  # the share of this process does not do: decided on all rows, in the next batch
                ticket.item["whole"] = True
                self.queue.put(ticket)
            else:
                done.append((ticket, row))
                if charge := ticket.item.get("charge"):
                    metrics.charged(charge, ticket.item["charge_currency"])
        if done:
            self._answer(done)

    def _retry_parked(self) -> None:
        """Those whose counters somebody has locked: tried again on their own, without waiting for the lock."""
        now = time.monotonic()
        if now < self._next_parked:
            return
        self._next_parked = now + PARKED_RETRY_SECONDS
        parked, self._parked = self._parked, defaultdict(list)
        tickets = [ticket for lane in parked.values() for ticket in lane]
        self._in_hand = [*self._in_hand, *tickets]
        late: list[Ticket] = []
        waiting: list[Ticket] = []
        for ticket in tickets:
            impatient = not ticket.must_be_kept and now - ticket.given_at > PARKED_PATIENCE_SECONDS
            (late if impatient else waiting).append(ticket)
        self._refuse(late, lambda: Unavailable("The service is temporarily overloaded.", retry_after=1))
        for start in range(0, len(waiting), MAX_BATCH):
            self._write(waiting[start : start + MAX_BATCH], skip=True)
