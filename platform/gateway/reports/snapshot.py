"""One state of the ledger for a report that reads it in many short statements.

An open transaction of hours would hold back vacuum on the hot counters (design.md 2), so none is kept open.
Instead the report notes PostgreSQL's snapshot as text at its start, and every page leaves out the rows whose
transaction that snapshot did not see. The ledger is append-only, so what remains is one state, exactly.
"""

from __future__ import annotations

import re

from django.db import connection

from gateway.billing.rollups import LedgerFromElsewhere

# For a WHERE clause on either table, with the text of a snapshot as parameter `snapshot`.
VISIBLE = "pg_visible_in_snapshot(recorded_xid, %(snapshot)s::text::pg_snapshot)"

_SHAPE = re.compile(r"\d{1,19}:\d{1,19}:[\d,]{0,20000}")
_TAKE = """
SELECT pg_current_snapshot()::text,
       EXISTS (SELECT FROM ledger_usagerecord WHERE recorded_xid >= pg_snapshot_xmax(pg_current_snapshot()))"""


def take() -> str:
    """The ledger's watermark, such as "7421:7425:7421,7423". Raises LedgerFromElsewhere."""
    with connection.cursor() as cursor:
        cursor.execute(_TAKE)
        text, foreign = cursor.fetchone()
    if foreign:
        raise LedgerFromElsewhere
    return str(text)


def is_snapshot(text: str) -> bool:
    return _SHAPE.fullmatch(text) is not None
