"""The hourly sums are the ledger's, whatever commits when and whoever is killed."""

from __future__ import annotations

import random
import threading
from datetime import UTC, date, datetime, timedelta

import pytest
from django.db import connection, transaction

from gateway.billing import rollups
from gateway.billing.models import RollupState, UsageHour
from tests.billing import books

pytestmark = pytest.mark.django_db(transaction=True)


def test_it_sums_a_key_s_hour() -> None:
    key = books.key(books.tenant("acme"))
    books.record(key)
    books.record(key, status="interrupted", estimated=True, charge=5)
    unpriced = books.record(key, charge=None)
    books.settle_rollups()
    hour = UsageHour.objects.get()
    assert (hour.hour, hour.local_date) == (books.NOON, date(2026, 11, 10))
    assert (hour.requests, hour.errors, hour.unpriced, hour.adjustments) == (3, 1, 1, 0)
    assert (hour.input_tokens, hour.reasoning_tokens, hour.charge, hour.cost) == (3000, 150, 495_005, 900_000)

    books.adjustment(key, unpriced, kind="rating", charge=7)
    books.settle_rollups()
    rating = UsageHour.objects.get(kind="rating")
    assert (rating.requests, rating.unpriced, rating.adjustments, rating.charge) == (0, -1, 1, 7)


def test_it_adds_nothing_twice() -> None:
    key = books.key(books.tenant("acme"))
    for _ in range(5):
        books.record(key)
    books.settle_rollups()
    for _ in range(3):
        rollups.roll_up()
    assert books.totals("billing_usagehour")["requests"] == 5


def test_it_keeps_tenants_keys_models_and_currencies_apart() -> None:
    acme, globex = books.tenant("acme"), books.tenant("globex", currency="EUR")
    one, two, other = books.key(acme), books.key(acme, "server"), books.key(globex)
    books.record(one)
    books.record(two)
    books.record(one, model="acme-mini")
    books.record(one, cost_currency="EUR")
    books.record(other, charge_currency="EUR")
    books.settle_rollups()
    assert UsageHour.objects.for_tenant(acme).count() == 4
    assert list(UsageHour.objects.for_tenant(globex).values_list("key_id", "charge_currency")) == [(other.pk, "EUR")]


def test_it_splits_an_hour_at_a_local_midnight_within_it() -> None:
    key = books.key(books.tenant("kolkata", timezone="Asia/Kolkata"))  # midnight there is 18:30 UTC
    books.record(key, datetime(2026, 11, 10, 18, 29, 59, tzinfo=UTC))
    books.record(key, datetime(2026, 11, 10, 18, 30, tzinfo=UTC))
    books.settle_rollups()
    assert list(UsageHour.objects.order_by("local_date").values_list("hour__hour", "local_date")) == [
        (18, date(2026, 11, 10)),
        (18, date(2026, 11, 11)),
    ]


def test_it_takes_whole_transactions_in_chunks_of_any_size() -> None:
    key = books.key(books.tenant("acme"))
    with transaction.atomic():
        for _ in range(7):
            books.record(key)
    books.record(key)
    with transaction.atomic():
        for _ in range(4):
            books.record(key)
    while rollups.roll_up(rows=2, chunks=1) and books.totals() != books.totals("billing_usagehour"):
        pass
    assert books.totals("billing_usagehour")["requests"] == 12


def test_it_waits_for_an_open_transaction_and_then_takes_what_it_wrote() -> None:
    key = books.key(books.tenant("acme"))
    opened, close = threading.Event(), threading.Event()

    def hold_open() -> None:
        try:
            with transaction.atomic():
                books.record(key, model="late")  # an early number, a late commit
                opened.set()
                close.wait(30)
        finally:
            connection.close()

    writer = threading.Thread(target=hold_open)
    writer.start()
    assert opened.wait(30)
    books.record(key, model="early")
    rollups.roll_up()
    assert not UsageHour.objects.exists()  # "early" has a number above the open one: it waits, nothing is lost
    close.set()
    writer.join()
    books.settle_rollups()
    assert set(UsageHour.objects.values_list("model", flat=True)) == {"early", "late"}


def test_two_at_once_do_not_wait_for_each_other() -> None:
    books.record(books.key(books.tenant("acme")))
    rollups.roll_up()
    taken, free = threading.Event(), threading.Event()

    def occupy() -> None:
        try:
            with transaction.atomic():
                RollupState.objects.select_for_update().get(name="hour")
                taken.set()
                free.wait(30)
        finally:
            connection.close()

    other = threading.Thread(target=occupy)
    other.start()
    assert taken.wait(30)
    assert rollups.roll_up() == 0
    free.set()
    other.join()


def test_it_refuses_a_ledger_that_was_restored_from_another_cluster() -> None:
    RollupState.objects.create(name="hour", next_xid=2**60)
    with pytest.raises(rollups.LedgerFromElsewhere, match="pg_resetwal"):
        rollups.roll_up()


def test_it_is_exact_under_concurrent_writers_and_killed_rollups() -> None:
    """Writers with transactions of any length, some rolled back; two rollups, their backends killed."""
    keys = [books.key(books.tenant(slug)) for slug in ("acme", "globex")]
    stop = threading.Event()
    seed = random.Random(20261122)
    threads = [threading.Thread(target=_write, args=(keys, random.Random(seed.random()))) for _ in range(4)]
    workers = [threading.Thread(target=_roll, args=(stop, random.Random(seed.random()))) for _ in range(2)]
    killer = threading.Thread(target=_kill, args=(stop, random.Random(seed.random())))
    for thread in (*threads, *workers, killer):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    for thread in (*workers, killer):
        thread.join()
    books.settle_rollups()
    assert books.totals("billing_usagehour")["requests"] > 100


class _RolledBack(Exception):
    pass


def _write(keys: list[books.APIKey], dice: random.Random) -> None:
    try:
        for _ in range(30):
            try:
                with transaction.atomic():
                    for _ in range(dice.randrange(1, 6)):
                        started = books.NOON + timedelta(minutes=dice.randrange(300))
                        request_id = books.record(dice.choice(keys), started, charge=dice.choice([None, 0, 10**12]))
                        if dice.random() < 0.3:
                            books.adjustment(keys[0], request_id, started, charge=-dice.randrange(1000))
                    stop = threading.Event()
                    stop.wait(dice.random() * 0.02)
                    if dice.random() < 0.2:
                        raise _RolledBack
            except _RolledBack:
                pass
    finally:
        connection.close()


def _roll(stop: threading.Event, dice: random.Random) -> None:
    from django.db.utils import InterfaceError, OperationalError

    try:
        while not stop.is_set():
            try:
                rollups.roll_up(rows=dice.choice([1, 5, 1000]))
            except (OperationalError, InterfaceError):  # killed
                connection.close()
    finally:
        connection.close()


def _kill(stop: threading.Event, dice: random.Random) -> None:
    """End the backends that are rolling up just now, as a kill -9 of the worker would."""
    try:
        while not stop.wait(dice.random() * 0.05):
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"
                    " AND query LIKE '%%billing_%%' AND query NOT LIKE '%%pg_stat%%'",
                    [],
                )
    finally:
        connection.close()
