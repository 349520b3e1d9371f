"""Sums by day for whoever only looks: the hourly sums, plus the ledger rows that those do not have yet.

One statement, so both halves are of one instant, and the sum is the ledger's however far the rollup is.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from django.db import connection

from gateway.billing.facts import MEASURES, facts_of, sums
from gateway.reports.selection import Selection

Key = tuple[date | int | str, ...]  # one value per dimension


def newest_sums(
    selection: Selection, dimensions: Sequence[str], *, limit: int, before: Key | None = None
) -> tuple[dict[Key, list[int]], bool]:
    """The last `limit` groups below `before`, in descending order of the dimensions (`local_date` first), each
    with its MEASURES; and whether there are more."""
    condition = selection.condition() + (" AND local_date <= %(before_local_date)s" if before else "")
    tail = f"recorded_xid >= (SELECT next_xid FROM mark)::text::xid8 AND {condition}"
    groups = ", ".join(dimensions)
    columns = ", ".join((*dimensions, *MEASURES))
    marks = ", ".join(f"%(before_{name})s" for name in dimensions)
    bounds: dict[str, Any] = {f"before_{name}": value for name, value in zip(dimensions, before or (), strict=False)}
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
WITH mark AS (SELECT coalesce((SELECT next_xid FROM billing_rollupstate WHERE name = 'hour'), 0) AS next_xid)
SELECT {groups}, {sums()} FROM (
    SELECT {columns} FROM billing_usagehour WHERE {condition}
    UNION ALL
    SELECT {columns} FROM ({facts_of(tail)}) AS facts
) AS parts {f"WHERE ({groups}) < ({marks})" if before else ""}
GROUP BY {groups} ORDER BY {", ".join(name + " DESC" for name in dimensions)} LIMIT %(limit)s + 1""",
            {**selection.parameters(), **bounds, "limit": limit},
        )
        rows = cursor.fetchall()
    width = len(dimensions)
    return {row[:width]: [int(value) for value in row[width:]] for row in rows[:limit]}, len(rows) > limit
