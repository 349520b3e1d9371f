"""What /readyz looks at, in a thread of its own: a database that hangs must not hang the answer.

One probe at a time, and its result serves everybody for a second: the page needs no key.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from django.db import connection
from django.db.migrations.loader import MigrationLoader
from django.utils import timezone

from gateway.ledger import desk, processes
from gateway.server import state

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 3.0
KEEP_SECONDS = 1.0
MAX_SKEW_SECONDS = 1.0

_thread = ThreadPoolExecutor(1, thread_name_prefix="readiness")
_probe: asyncio.Future[list[str]] | None = None
_probed_at = 0.0


async def reasons() -> list[str]:
    """Why this process should get no requests now; empty when it should."""
    if state.draining:
        return ["draining"]
    found = [] if desk.current().alive else ["desk: not writing"]
    return found + await _database()


async def _database() -> list[str]:
    global _probe, _probed_at
    loop = asyncio.get_running_loop()
    stale = time.monotonic() - _probed_at > KEEP_SECONDS
    if _probe is None or (_probe.done() and stale) or _probe.get_loop() is not loop:
        _probe, _probed_at = loop.run_in_executor(_thread, examine), time.monotonic()
    try:
        return await asyncio.wait_for(asyncio.shield(_probe), TIMEOUT_SECONDS)
    except TimeoutError:
        return [f"database: no answer within {TIMEOUT_SECONDS:.0f} s"]


def examine() -> list[str]:
    """Ask the database, on a new connection. Synchronous; never raises."""
    return _asked(_clock, _migrations, _worker)


def unfit() -> list[str]:
    """Why this process would answer worse than one of another version, or with other settings, that serves now."""
    return _asked(_migrations)


def _asked(*questions: Callable[[], list[str]]) -> list[str]:
    try:
        try:
            return [reason for question in questions for reason in question()]
        finally:
            connection.close()
    except Exception as error:
        log.warning("The database does not answer", extra={"error": type(error).__name__})
        return ["database: not reachable"]


def _clock() -> list[str]:
    before = time.time()
    with connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        (theirs,) = cursor.fetchone() or (0.0,)
    after = time.time()
    skew = max(before - theirs, theirs - after, 0.0)
    return [f"clock: {skew:.1f} s apart from the database's"] if skew > MAX_SKEW_SECONDS else []


def _migrations() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT app, name FROM django_migrations")
        applied = set(cursor.fetchall())
    missing = sorted(f"{app}.{name}" for app, name in _wanted() - applied)
    return [f"migrations: not applied: {', '.join(missing)}"] if missing else []


@cache
def _wanted() -> frozenset[tuple[str, str]]:
    """The last migration of every app, from the files."""
    return frozenset(MigrationLoader(None).graph.leaf_nodes())


def _worker() -> list[str]:
    seen = processes.worker_seen_at()
    if seen is None:
        return ["worker: none has ever started"]
    if timezone.now() - seen > processes.FRESH:
        return [f"worker: last seen {(timezone.now() - seen).total_seconds():.0f} s ago"]
    return []
