"""The ledger's monthly partitions, made ahead by Celery; the SQL runs as the tables' owner."""

from __future__ import annotations

from django.db import connection

MONTHS_AHEAD = 3


def ensure(*, months_ahead: int = MONTHS_AHEAD) -> int:
    """Make those that are missing; returns how many."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT ledger_ensure_partitions(%s)", [months_ahead])
        made: int = cursor.fetchone()[0]
    return made
