"""Takes the holds of dead processes (accounting.md 6: status `unknown`, charged nothing, for a person).

Run every `LOOK_SECONDS` by Celery's beat. A process is dead when two looks a lease apart have seen no
heartbeat: after an outage of the database every heartbeat is old, so one look is never enough.
"""

from __future__ import annotations

import logging

from django.db import connection

log = logging.getLogger(__name__)

LEASE_SECONDS = 15
LOOK_SECONDS = 5
CHUNK = 500  # holds a transaction: short ones, so that the desk never waits long for a counter


def sweep(*, lease_seconds: float = LEASE_SECONDS) -> int:
    """One look; returns how many holds became records. Idempotent, and safe to run twice at once."""
    total = 0
    with connection.cursor() as cursor:
        cursor.execute("SELECT ledger_dead_processes(make_interval(secs => %s))", [lease_seconds])
        for (process_id,) in cursor.fetchall():
            taken, lost = CHUNK, 0
            while taken == CHUNK:
                cursor.execute("SELECT ledger_sweep(%s, %s)", [process_id, CHUNK])
                (taken,) = cursor.fetchone()
                lost += taken
            if lost:
                log.error("Process %s died; %d of its requests are now of status unknown", process_id, lost)
            total += lost
    return total
