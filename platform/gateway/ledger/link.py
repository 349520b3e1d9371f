"""The writer's one connection: the desk's function as a prepared statement, called through libpq itself.

A cursor of psycopg costs 60 to 100 microseconds of Python a call, which at one request in flight is most of
the desk's price; the binary protocol layer underneath it costs ten.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any
from uuid import UUID, uuid4

import orjson
import psycopg
from django.db import connection
from django.db.utils import Error as DjangoDatabaseError
from psycopg import pq

from gateway import clock
from gateway.ledger.items import Item

LOCK_TIMEOUT_MS = 100
STATEMENT_TIMEOUT_MS = 10_000
# Classes of SQLSTATE that say nothing of the items: connection, rollback, resources, operator, system; login, and
# a prepared statement that the session does not know (any more).
TRANSIENT = (b"08", b"25", b"26", b"28", b"40", b"53", b"57", b"58", b"XX")
# A right, a function or a column that is missing: a deploy gone wrong. It passes when somebody has put it right.
SCHEMA = (b"0A", b"42")

_SESSION = f"""
SET lock_timeout = '{LOCK_TIMEOUT_MS}ms'; SET statement_timeout = '{STATEMENT_TIMEOUT_MS}ms';
SET timezone = 'UTC'; SET jit = off; SET plan_cache_mode = force_generic_plan;
-- A plan that was made while the tables were empty must not scan them when they are full.
SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
SET application_name = 'counterfoil desk'
"""
_CALL = b"SELECT ledger_desk($1, $2, $3, $4)"
_BEAT = """
INSERT INTO ledger_process (id, kind, host, pid, started_at, heartbeat_at)
VALUES (%(id)s, %(kind)s, %(host)s, %(pid)s, now(), now())
ON CONFLICT (id) DO UPDATE SET heartbeat_at = now(), suspected_at = NULL, ended_at = NULL
RETURNING clock_timestamp()
"""
# A number for this process's own rows of counters (ledger.heat): free again when the session ends.
_SHARD = "SELECT n FROM generate_series(1, 63) n WHERE pg_try_advisory_lock(hashtext('ledger_shard'), n) LIMIT 1"
# A session that we gave up may still have a batch in its buffer, which it would book after we released its holds.
_FENCE = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE pid = %(pid)s AND application_name = 'counterfoil desk'
"""


class LinkLost(Exception):
    """The database is away, or the outcome of a call is not known."""


class RowLocked(Exception):
    """Somebody held a row for longer than the lock time-out; nothing was written."""


class BatchRefused(Exception):
    """The database does not take this batch as it is; nothing was written."""

    def __init__(self, message: str, *, for_good: bool = True) -> None:
        super().__init__(message)
        self.for_good = for_good


class Link:
    """Used by one thread, the writer's."""

    def __init__(self, process_id: UUID | None = None) -> None:
        self.process_id = process_id or uuid4()
        self._id = str(self.process_id).encode()
        self._pg: Any = None
        self.shard = 0  # 0: all numbers are taken
        self._left: int | None = None  # the server's process of the session before this one

    @property
    def open(self) -> bool:
        return self._pg is not None

    def connect(self) -> None:
        self.close()
        try:
            connection.ensure_connection()
            with connection.cursor() as cursor:
                cursor.execute(_SESSION)
            if self._left is not None:
                self.execute(_FENCE, {"pid": self._left})
            self.shard = (self.execute(_SHARD, {}) or [0])[0]
            pg = connection.connection.pgconn
            prepared = pg.prepare(b"ledger_desk", _CALL, [2950, 114, 16, 16])  # uuid, json, bool, bool
            if prepared.status != pq.ExecStatus.COMMAND_OK:
                raise LinkLost(prepared.error_message.decode(errors="replace"))
            self._pg, self._left = pg, pg.backend_pid
            self.beat()
        except (psycopg.Error, DjangoDatabaseError, OSError) as exc:
            self.close()
            raise LinkLost(str(exc)) from exc

    def close(self) -> None:
        self._pg = None
        with contextlib.suppress(psycopg.Error, DjangoDatabaseError):
            connection.close()

    def call(self, items: list[Item], *, skip: bool, retry: bool) -> list[list[Any]]:
        """One batch, one round trip, one transaction: [[request_id, verdict, started_at, local_date], …]."""
        try:
            payload = orjson.dumps(items)
        except (TypeError, ValueError) as exc:
            raise BatchRefused(f"not JSON: {exc}") from exc
        try:
            result = self._pg.exec_prepared(
                b"ledger_desk", [self._id, payload, b"t" if skip else b"f", b"t" if retry else b"f"]
            )
        except psycopg.Error as exc:
            raise LinkLost(str(exc)) from exc
        if result.status == pq.ExecStatus.TUPLES_OK:
            return list(orjson.loads(result.get_value(0, 0) or b"[]"))
        state = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
        message = result.error_message.decode(errors="replace").strip()
        if state == b"55P03":
            raise RowLocked(message)
        if state and not state.startswith(TRANSIENT):
            raise BatchRefused(f"{state.decode()}: {message}", for_good=not state.startswith(SCHEMA))
        raise LinkLost(message)

    def beat(self) -> None:
        """Renew the lease of this process, and hear what time it is."""
        facts = {
            "id": self.process_id,
            "kind": "server",
            "host": socket.gethostname()[:255],
            "pid": os.getpid(),
        }
        asked = clock.ask()
        clock.hear(self.execute(_BEAT, facts)[0], asked)

    def end(self) -> None:
        """Give the lease back: holds that are left may be swept at once."""
        self.execute("UPDATE ledger_process SET ended_at = now() WHERE id = %(id)s", {"id": self.process_id})

    def bury(self, item: Item, error: str) -> None:
        """Keep a settlement that the ledger refuses, with all that a person needs to book it."""
        payload = orjson.dumps(item, default=str, option=orjson.OPT_NON_STR_KEYS) if _encodable(item) else repr(item)
        text = payload.decode() if isinstance(payload, bytes) else orjson.dumps({"repr": payload}).decode()
        self.execute(
            "INSERT INTO ledger_deadletter (request_id, payload, error, created_at)"
            " VALUES (%(id)s, %(payload)s::jsonb, %(error)s, now()) ON CONFLICT DO NOTHING",
            {
                "id": item["request_id"],
                "payload": text.replace("\\u0000", ""),
                "error": error.replace("\0", ""),
            },
        )

    def execute(self, statement: str, facts: dict[str, Any]) -> Any:
        """The first row, if there is one."""
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, facts)
                return cursor.fetchone() if cursor.description else None
        except (psycopg.Error, DjangoDatabaseError) as exc:
            raise LinkLost(str(exc)) from exc


def _encodable(item: Item) -> bool:
    try:
        orjson.dumps(item)
    except (TypeError, ValueError):
        return False
    return True
