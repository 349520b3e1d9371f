"""An export is one state of the ledger, whoever writes while it runs; a page never holds up the desk."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from datetime import date, timedelta

import pytest
from django.db import connection, transaction

from gateway.billing.facts import MEASURES
from gateway.reports import day_lines, request_lines, snapshot
from gateway.reports.asking import short_query
from gateway.reports.selection import BadSelection, Selection
from tests.billing import books

pytestmark = pytest.mark.django_db(transaction=True)

NOVEMBER = (date(2026, 11, 1), date(2026, 11, 30))


def test_both_forms_show_the_same_state_while_others_write() -> None:
    keys = [books.key(books.tenant(slug)) for slug in ("acme", "globex")]
    stop = threading.Event()
    seed = random.Random(20261122)
    writers = [threading.Thread(target=_write, args=(keys, stop, random.Random(seed.random()))) for _ in range(3)]
    for writer in writers:
        writer.start()
    first, laps, by = Counter[str](), 0, time.monotonic() + 120
    try:
        while laps < 6 or first["requests"] <= 5:
            assert time.monotonic() < by, "the writers wrote next to nothing"
            laps += 1
            seen = snapshot.take()
            assert snapshot.is_snapshot(seen)
            first = _sums(seen, "request")
            assert _sums(seen, "day") == first
            assert _sums(seen, "request") == first
    finally:
        stop.set()
        for writer in writers:
            writer.join()


def _sums(seen: str, by: str) -> Counter[str]:
    sums: Counter[str] = Counter()
    if by == "request":
        for page in request_lines.pages(Selection(*NOVEMBER), seen, rows=7):
            for line in page:
                sums.update({name: getattr(line, name) or 0 for name in MEASURES if name != "adjustments"})
    else:
        for days in day_lines.pages(Selection(*NOVEMBER, by="day"), seen, rows=7):
            for day in days:
                sums.update({name: getattr(day, name) for name in MEASURES if name != "adjustments"})
    return sums


def _write(keys: list[books.APIKey], stop: threading.Event, dice: random.Random) -> None:
    try:
        while not stop.is_set():
            with transaction.atomic():
                for _ in range(dice.randrange(1, 4)):
                    key = dice.choice(keys)
                    started = books.NOON + timedelta(minutes=dice.randrange(20_000))
                    request_id = books.record(key, started, charge=dice.choice([None, 7]))
                    if dice.random() < 0.4:
                        kind = dice.choice(["correction", "rating"])
                        books.adjustment(key, request_id, started, kind=kind, charge=dice.randrange(-9, 9))
                stop.wait(dice.random() * 0.02)
    finally:
        connection.close()


def test_a_page_that_takes_too_long_is_given_up_with_advice() -> None:
    with pytest.raises(BadSelection, match="shorter period"), short_query(20), connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(10)")
    with short_query(10_000), connection.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("10s",)
    with connection.cursor() as cursor:  # for this transaction only
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("0",)
