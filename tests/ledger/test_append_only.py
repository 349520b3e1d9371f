"""Nobody changes the ledger: not the application's role, not even the owner of the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from django.conf import settings
from django.db import ProgrammingError, connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from gateway.embedded import layout
from gateway.ledger.books import Delta, record_adjustment
from gateway.ledger.items import Attempt, Ending, Order
from gateway.ledger.link import Link
from gateway.ledger.models import Adjustment, Counter, UsageRecord
from gateway.ledger.roles import grant_application_role
from gateway.ledger.verification import verify
from gateway.upstreams.base import Usage

TABLES = ["ledger_usagerecord", "ledger_attempt", "ledger_adjustment"]


@pytest.fixture
def record(order: Callable[..., Order]) -> UsageRecord:
    mine = order()
    link = Link(uuid4())
    link.connect()
    row = link.call([mine.admission()], skip=False, retry=False)[0]
    mine.started_at, mine.local_date = row[2], row[3]
    tried = Attempt(1, mine.deployment_id, mine.provider_id, mine.model, 0, 5, 9, "ok", 200)
    ending = Ending("completed", Usage(10, 0, 0, 20), attempts=(tried,))
    link.call([mine.settlement(ending)], skip=False, retry=False)
    link.close()
    record = UsageRecord.objects.get()
    record_adjustment(record=record, kind="correction", delta=Delta(charge=-5), reason="too dear", by=None)
    return record


@pytest.fixture
def application(record: UsageRecord) -> Iterator[BaseDatabaseWrapper]:
    """A connection with the login of the application, as the embedded engine made it."""
    login = layout.databases(settings.COUNTERFOIL_HOME)["default"]
    assert grant_application_role(connection, role=str(login["USER"]), password="")
    other = connections["default"].copy()
    other.settings_dict = {**other.settings_dict, **{name: login[name] for name in ("USER", "PASSWORD")}}
    yield other
    other.close()


def changes(table: str) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT tableoid::regclass::text FROM {table}")
        partition = cursor.fetchone()[0]
    return [
        f"UPDATE {table} SET tenant_id = 7",
        f"DELETE FROM {table}",
        f"TRUNCATE {table}",
        f"TRUNCATE {partition}",
        f"DELETE FROM {partition}",
    ]


@pytest.mark.parametrize("table", TABLES)
def test_the_owner_is_refused_by_triggers(record: UsageRecord, table: str) -> None:
    for statement in changes(table):
        with pytest.raises(Exception, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statement)
    assert UsageRecord.objects.count() == Adjustment.objects.count() == 1


@pytest.mark.parametrize("table", TABLES)
def test_the_application_is_refused_by_its_role(application: BaseDatabaseWrapper, table: str) -> None:
    statements = [
        *changes(table),
        f"DROP TABLE {table}",
        f"ALTER TABLE {table} DISABLE TRIGGER ALL",
        "ALTER TABLE ledger_usagerecord DETACH PARTITION ledger_usagerecord_other",
        "SET session_replication_role = replica",
    ]
    for statement in statements:
        with pytest.raises(ProgrammingError), application.cursor() as cursor:
            cursor.execute(statement)
    assert UsageRecord.objects.count() == 1


def test_the_application_makes_partitions_only_through_the_owners_function(
    application: BaseDatabaseWrapper,
) -> None:
    with application.cursor() as cursor:
        cursor.execute("SELECT ledger_ensure_partitions(7)")
        assert cursor.fetchone()[0] >= 0


def test_an_adjustment_moves_the_counters_with_it(record: UsageRecord) -> None:
    assert record.charge is not None
    assert {int(c.charge) for c in Counter.objects.all()} == {record.charge - 5}
    assert verify().drift == []
