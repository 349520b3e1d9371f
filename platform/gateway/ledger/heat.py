"""Which counters this process wants so often together with others that it gets rows of its own (0010_windows.sql).

A counter's row is locked until its batch is on disk, so a row that many processes want is the ceiling of them all.
The desk says for whom it has waited; who has cost a tenth of a second of waiting within a second is *hot* for a
while. Of a hot tenant this process moves its own rows, and of a limit for everybody that is hot its own row of that.
Which row is only a matter of speed: what may be taken in each is decided in SQL. No coordination, and when it has
cooled down it is measured anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence

from gateway.limits.claims import Claim

log = logging.getLogger(__name__)

WATCH_SECONDS = 1.0
ENOUGH_MS = 100  # of waiting in WATCH_SECONDS
HOT_SECONDS = 60.0
KNOWN = 1_000  # subjects in memory

Subject = tuple[int, int]  # a tenant and 0, or 0 and a rule for everybody


class Heat:
    """Written by the writer's thread, read on the event loop."""

    def __init__(self) -> None:
        self.shard = 0  # this process's rows; 0: it has no number, and uses the first rows as everybody does
        self._until: dict[Subject, float] = {}
        self._waited: dict[Subject, int] = {}
        self._watched_since = 0.0

    def waited(self, waits: Iterable[Sequence[int]], now: float | None = None) -> None:
        """(tenant, rule, milliseconds) of one batch."""
        now = time.monotonic() if now is None else now
        if now - self._watched_since > WATCH_SECONDS or len(self._waited) > KNOWN:
            self._watched_since = now
            self._waited = {}
        for tenant, rule, ms in waits:
            subject = tenant, rule
            total = self._waited[subject] = self._waited.get(subject, 0) + ms
            if total >= ENOUGH_MS and self.shard:
                if not self._hot(subject, now):
                    log.info("%s is busy in many processes: it gets counters of its own here", _name(subject))
                    self._until = {known: end for known, end in self._until.items() if end > now}
                self._until[subject] = now + HOT_SECONDS

    def shard_of(self, tenant: int) -> int:
        """For the lifetime counters of a tenant and its keys."""
        return self.shard if self._until and self._hot((tenant, 0)) else 0

    def spread(self, claims: Iterable[Claim], tenant: int) -> list[list[int]]:
        """Claims as the desk's SQL wants them: each with the row that this process uses."""
        if not self._until:
            return [[*claim, 0] for claim in claims]
        own = self.shard_of(tenant)
        return [
            [*claim, (self.shard if self._hot((0, claim.rule)) else 0) if claim.everybody else own]
            for claim in claims
        ]

    def _hot(self, subject: Subject, now: float | None = None) -> bool:
        until = self._until.get(subject)
        return until is not None and (time.monotonic() if now is None else now) < until


def _name(subject: Subject) -> str:
    tenant, rule = subject
    return f"tenant {tenant}" if tenant else f"limit {rule}"
