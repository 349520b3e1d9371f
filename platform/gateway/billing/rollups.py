"""Adds new rows of the ledger to the hourly sums, each exactly once.

The order of ids and of times is not the order of commits, so neither can say "all up to here was read".
Ledger rows carry their transaction's number (`recorded_xid`); what is below the oldest transaction that is
still open can no longer change. A chunk reads up to there, adds, and moves the mark, in one short
transaction: a task that is killed has done nothing, and two at once cannot both hold the mark's row.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper

from gateway.billing.facts import DIMENSIONS, MEASURES, facts_of, sums

CHUNK = 20_000  # ledger rows: about 0.1 s
CHUNKS = 100  # in one run; the next run goes on

_RANGE = "recorded_xid >= %(low)s::text::xid8 AND recorded_xid < %(high)s::text::xid8"
_KEYS = ("hour", *DIMENSIONS)
_ADD = f"""
INSERT INTO billing_usagehour ({", ".join((*_KEYS, *MEASURES))})
SELECT date_trunc('hour', started_at, 'UTC') AS hour, {", ".join(DIMENSIONS)}, {sums()}
  FROM ({facts_of(_RANGE)}) AS facts
 GROUP BY {", ".join(_KEYS)}
 ORDER BY {", ".join(_KEYS)}
    ON CONFLICT ({", ".join(_KEYS)}) DO UPDATE
   SET {", ".join(f"{name} = billing_usagehour.{name} + excluded.{name}" for name in MEASURES)}"""

# The transaction number of the row after the chunk: rows of one transaction are never split.
_BOUND = f"""
SELECT recorded_xid::text::bigint FROM (
    (SELECT recorded_xid FROM ledger_usagerecord WHERE {_RANGE} ORDER BY recorded_xid LIMIT %(rows)s + 1)
    UNION ALL
    (SELECT recorded_xid FROM ledger_adjustment WHERE {_RANGE} ORDER BY recorded_xid LIMIT %(rows)s + 1)
) AS next ORDER BY recorded_xid OFFSET %(rows)s LIMIT 1"""


class LedgerFromElsewhere(Exception):
    """The mark is ahead of this cluster's transactions: the books are another cluster's dump."""

    def __init__(self) -> None:
        super().__init__(
            "The books carry transaction numbers that this PostgreSQL has not reached: they were restored "
            "from a dump of another cluster. Advance its counter first (pg_resetwal -e, see "
            "docs/finance.md, 'After a restore'); until then new records would be taken for counted ones."
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One chunk: whether there is more to read at once, and whether somebody else was at it."""

    more: bool
    busy: bool = False


def roll_up(*, rows: int = CHUNK, chunks: int = CHUNKS) -> int:
    """Read what the ledger has new. Returns the number of chunks; 0 if another task is at it."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO billing_rollupstate (name, next_xid) VALUES ('hour', 0) ON CONFLICT DO NOTHING")
    for done in range(chunks):
        step = _chunk(rows)
        if step.busy:
            return done
        if not step.more:
            return done + 1
    return chunks


def _chunk(rows: int) -> Step:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT next_xid FROM billing_rollupstate WHERE name = 'hour' FOR UPDATE SKIP LOCKED")
        state = cursor.fetchone()
        if state is None:
            return Step(more=False, busy=True)
        low, horizon = state[0], _horizon(cursor)
        if low > horizon:
            # A transaction older than the mark can be open again only if the numbers are another cluster's.
            raise LedgerFromElsewhere
        cursor.execute(_BOUND, {"low": low, "high": horizon, "rows": rows})
        bound = cursor.fetchone()
        # One transaction with more rows than a chunk is taken whole.
        high = max(bound[0], low + 1) if bound else horizon
        cursor.execute(_ADD, {"low": low, "high": high})
        cursor.execute("UPDATE billing_rollupstate SET next_xid = %s, moved_at = now() WHERE name = 'hour'", [high])
        return Step(more=high < horizon)


def _horizon(cursor: CursorWrapper) -> int:
    """The oldest transaction still open. Asked before the rows are read, in a statement of its own: a row
    that commits in between has a number at or above it and waits for the next chunk."""
    cursor.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
    (horizon,) = cursor.fetchone()
    return int(horizon)
