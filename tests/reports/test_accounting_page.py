"""docs/accounting.md and docs/finance.md say what the program does: their figures are recomputed here."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from gateway.catalogue.pricing import CLASSES, Rates, amount, format_amount, parse_amount, rate
from gateway.ledger.models import Adjustment, UsageRecord
from gateway.reports import csv_export

DOCS = Path(__file__).resolve().parents[2] / "docs"
ACCOUNTING = (DOCS / "accounting.md").read_text()
FINANCE = (DOCS / "finance.md").read_text()


def table(page: str, *header: str) -> list[list[str]]:
    """The rows of the table with this header line."""
    lines = page.splitlines()
    at = next(i for i, line in enumerate(lines) if _cells(line) == list(header))
    rows = []
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(_cells(line))
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_units_times_price_is_rounded_as_it_says() -> None:
    rows = table(ACCOUNTING, "units", "price per 1,000,000", "amount")
    assert len(rows) >= 8
    for units, price, expected in rows:
        assert format_amount(amount(int(units), parse_amount(price))) == expected
        exact = Decimal(units) * Decimal(price) / 1_000_000
        assert abs(exact - Decimal(expected)) <= Decimal("0.0000000005")


def test_the_worked_request_costs_what_it_says() -> None:
    *lines, total = table(ACCOUNTING, "class", "units", "price per 1,000,000", "amount")
    prices = {name: parse_amount(price) for name, _, price, _ in lines}
    rates = Rates(
        1, "USD", datetime(2026, 1, 1, tzinfo=UTC), cache_write=0, request=0, **{n: prices[n] for n in prices}
    )
    charge, classes = rate(rates, {name: int(units) for name, units, _, _ in lines})
    assert [
        (name, str(units), format_amount(price), format_amount(nano)) for name, units, price, nano in classes
    ] == [(name, units, price, expected) for name, units, price, expected in lines]
    assert format_amount(charge) == total[3] == format_amount(sum(line[3] for line in classes))
    ((*figures, together),) = table(ACCOUNTING, "input", "cached input", "output", "reasoning", "total")
    assert figures == [units for _, units, _, _ in lines]
    assert sum(map(int, figures)) == int(together) == 1200 + 550


@pytest.mark.parametrize(
    "zone, started, day", table(ACCOUNTING, "tenant's zone", "request started (UTC)", "local day")
)
@pytest.mark.django_db
def test_a_local_day_is_what_it_says_also_to_the_database(zone: str, started: str, day: str) -> None:
    from django.db import connection

    instant = datetime.fromisoformat(started)
    assert str(instant.astimezone(ZoneInfo(zone)).date()) == day
    with connection.cursor() as cursor:  # admission works it out there
        cursor.execute("SELECT (%s::timestamptz AT TIME ZONE %s)::date::text", [instant, zone])
        assert cursor.fetchone() == (day,)


def test_it_names_every_status_kind_and_class() -> None:
    named = set(re.findall(r"`([a-z_]+)`", ACCOUNTING))
    assert named >= set(UsageRecord.Status.values)
    assert {kind for kind, _ in table(ACCOUNTING, "kind", "why")} == {f"`{kind}`" for kind in Adjustment.Kind.values}
    assert named >= {f"{name}_tokens" for name in CLASSES}


def test_every_column_of_the_file_is_explained() -> None:
    explained = set(re.findall(r"`([a-z_]+)`", FINANCE))
    tokens = {name for name in csv_export.REQUEST_COLUMNS if name.endswith("_tokens")}
    assert set(csv_export.REQUEST_COLUMNS) - explained <= tokens
    assert set(csv_export.DAY_COLUMNS) <= set(csv_export.REQUEST_COLUMNS)
