"""A database whose clock can be set and stepped, which nobody may do to the machine's.

Functions of ours stand before pg_catalog's in the search path of every session that begins while it is there: the
desk's, the sweeper's and the drift check's take them for the clock, as their SQL names them without a schema. (A view
was bound when it was made: ledger_watched_counter keeps to the machine's clock. So step into the future.)
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from django.db import connection

import gateway.clock

SCHEMA = """
CREATE SCHEMA clock;
CREATE TABLE clock.step (by interval NOT NULL, at timestamptz);
INSERT INTO clock.step VALUES ('0', NULL);
CREATE FUNCTION clock.now() RETURNS timestamptz LANGUAGE sql STABLE AS
    'SELECT COALESCE(s.at, pg_catalog.now() + s.by) FROM clock.step s';
CREATE FUNCTION clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
    'SELECT COALESCE(s.at, pg_catalog.clock_timestamp() + s.by) FROM clock.step s';
"""


class Clock:
    def set(self, instant: datetime) -> None:
        self._run("UPDATE clock.step SET by = %s - pg_catalog.clock_timestamp()", instant)

    def step(self, **by: float) -> None:
        """By so much, on or back, from one moment to the next."""
        self._run("UPDATE clock.step SET by = by + %s", timedelta(**by))

    def freeze(self, instant: datetime) -> None:
        """It stands still, and this process has heard of it."""
        self._run("UPDATE clock.step SET at = %s", instant)
        gateway.clock.hear(instant, gateway.clock.ask())

    def now(self) -> datetime:
        with connection.cursor() as cursor:
            cursor.execute("SELECT clock.clock_timestamp()")
            found: datetime = cursor.fetchone()[0]
            return found

    def _run(self, statement: str, value: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement, [value])


@pytest.fixture
def clock(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Ask for it before the desk: a session keeps the clock that it began with."""
    monkeypatch.setattr(gateway.clock, "_ahead_ns", 0)  # and forget at the end what was heard here
    with connection.cursor() as cursor:
        cursor.execute(SCHEMA)
        name = connection.ops.quote_name(connection.settings_dict["NAME"])
        cursor.execute(f"ALTER DATABASE {name} SET search_path = clock, public, pg_catalog")
    connection.close()
    yield Clock()
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER DATABASE {name} RESET search_path")
        cursor.execute("DROP SCHEMA clock CASCADE")
    connection.close()
