"""What every test gets: the test database belongs to the owner's role, as in production."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import hypothesis
import pytest
from django.conf import settings
from django.db import connections, transaction
from django.db.backends.postgresql.operations import DatabaseOperations

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("unhurried", hypothesis.settings.default, deadline=None)
hypothesis.settings.load_profile("unhurried")
ZONES = [ZoneInfo(name) for name in ("UTC", "Europe/Berlin", "Asia/Tokyo", "Asia/Kolkata")]
HOUR, DAY = 3600, 86_400  # seconds


def pytest_runtest_setup(item: pytest.Item) -> None:
    """No test begins just before an hour or a day of its cast ends: what it counts today must not be of yesterday.

    Those that are about midnight have a clock of their own (tests/limits/clock.py).
    """
    for zone in ZONES:
        now = datetime.now(zone)
        of_day = now.hour * HOUR + now.minute * 60 + now.second + now.microsecond / 1e6
        left_of_hour, left_of_day = HOUR - of_day % HOUR, DAY - of_day
        if left_of_day < 30 or left_of_hour < 3:
            time.sleep(left_of_hour + 0.01)


def _flush_past_triggers(self: DatabaseOperations, statements: list[str]) -> None:
    """Flush between tests; the ledger's triggers refuse TRUNCATE to everybody, the owner included."""
    with transaction.atomic(using=self.connection.alias), self.connection.cursor() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")
        for statement in statements:
            cursor.execute(statement)
        # The one row that a migration makes, with a version that no snapshot of an earlier test has.
        cursor.execute(
            "INSERT INTO catalogue_catalogueversion (version)"
            " VALUES ((extract(epoch FROM clock_timestamp()) * 1000000)::bigint)"
        )


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings_parallel_suffix: None) -> Iterator[None]:
    """The owner makes the test database and its tables, as `migrate` does; pytest-django asks before it starts."""
    owner: dict[str, Any] = settings.MIGRATION_DATABASE
    login = {name: owner[name] for name in ("USER", "PASSWORD", "HOST", "PORT") if name in owner}
    connections.settings["default"].update(login)
    patch = pytest.MonkeyPatch()
    patch.setattr(DatabaseOperations, "execute_sql_flush", _flush_past_triggers)
    yield
    patch.undo()
