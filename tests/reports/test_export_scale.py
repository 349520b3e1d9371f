"""A large export takes no more memory than a small one, in short statements outside any transaction.

docs/finance.md has the figures for a million rows; this is the same in small.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from datetime import date

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from gateway.reports import csv_export, day_lines, request_lines
from gateway.reports.selection import By, Selection
from tests.billing import books

pytestmark = pytest.mark.django_db(transaction=True)

A_DAY = 1_000
_FILL = """
INSERT INTO ledger_usagerecord (request_id, tenant_id, key_id, model, started_at, local_date, charge_currency,
    cost_currency, process_id, catalogue_model_id, endpoint, stream, status, estimated, http_status, error_code,
    ended_at, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens, charge, cost,
    lines, client_request_id, end_user)
SELECT (left(ledger_uuid_at(at)::text, 14) || '7' || substr(h, 1, 3) || '-8' || substr(h, 4, 3) || '-'
        || substr(h, 7, 12))::uuid,
    %(tenant)s, %(key)s, 'acme-chat', at, (at AT TIME ZONE 'UTC')::date, 'USD', 'USD', gen_random_uuid(), 1,
    'chat.completions', false, 'completed', false, 200, '', at, 10, 0, 0, 5, 0, n, n, '[]', '', 'user-' || n
FROM (SELECT n, timestamptz '2026-11-01 00:00+00' + n * interval '1 day' / %(a_day)s AS at, md5(n::text) AS h
      FROM generate_series(0, 6 * %(a_day)s - 1) n) s"""


@pytest.fixture
def month(transactional_db: None) -> None:
    """Six days of November with 1,000 requests each."""
    key = books.key(books.tenant("acme"))
    with connection.cursor() as cursor:
        cursor.execute(_FILL, {"tenant": key.tenant_id, "key": key.pk, "a_day": A_DAY})


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, rows in ((request_lines, 125), (day_lines, 250)):
        whole = module.pages

        def pages(
            selection: Selection, snapshot: str, *, whole: object = whole, rows: int = rows
        ) -> Iterator[object]:
            yield from whole(selection, snapshot, rows=rows)  # type: ignore[operator]

        monkeypatch.setattr(module, "pages", pages)


def peak_of(by: By, last: date) -> tuple[int, int]:
    """(bytes at the peak above the start, bytes of the file)"""
    gc.collect()
    tracemalloc.start()
    try:
        size = 0
        for chunk in csv_export.chunks(Selection(date(2026, 11, 1), last, by=by)):
            assert not connection.in_atomic_block
            size += len(chunk)
        return tracemalloc.get_traced_memory()[1], size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("by", ["request", "day"])
def test_memory_does_not_grow_with_the_number_of_requests(month: None, small_pages: None, by: By) -> None:
    peak_of(by, date(2026, 11, 1))  # warm: imports and caches count for nobody
    small, small_file = peak_of(by, date(2026, 11, 1))
    large, large_file = peak_of(by, date(2026, 11, 6))
    assert large < small * 1.3
    if by == "request":
        assert large_file > 5 * small_file
        assert large < large_file / 2


@pytest.mark.parametrize("by, rows", [("request", request_lines.PAGE), ("day", day_lines.WINDOW)])
def test_it_takes_two_statements_a_page(month: None, by: By, rows: int) -> None:
    with CaptureQueriesContext(
        connection,
    ) as queries:
        lines = b"".join(csv_export.chunks(Selection(date(2026, 11, 1), date(2026, 11, 6), by=by)))
    assert lines.count(b"\nusage,") == (6 * A_DAY if by == "request" else 6)
    pages = 6 * A_DAY // rows + 1
    names = 2 if by == "day" else 0  # the keys' names, once for the days done and once at the end
    assert len(queries) <= 1 + 2 * pages + names * pages
    assert not any(query["sql"].startswith(("BEGIN", "SAVEPOINT")) for query in queries)
