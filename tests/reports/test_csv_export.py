"""The export as finance gets it: what is in it, on which day, and what it adds up to."""

from __future__ import annotations

import csv
import hashlib
import io
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from gateway.catalogue.models import Provider
from gateway.reports import csv_export, day_lines, request_lines, snapshot
from gateway.reports.selection import BadSelection, By, Selection, parse_day
from tests.billing import books

pytestmark = pytest.mark.django_db(transaction=True)

NOVEMBER = (date(2026, 11, 1), date(2026, 11, 30))


def export(by: By = "request", period: tuple[date, date] = NOVEMBER, **filters: object) -> bytes:
    return b"".join(csv_export.chunks(Selection(*period, by=by, **filters)))  # type: ignore[arg-type]


def rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def data(content: bytes) -> list[dict[str, str]]:
    return [row for row in rows(content) if row["line"] != "total"]


def totals(content: bytes) -> dict[str, dict[str, str]]:
    return {row["control"].partition("=")[0]: row for row in rows(content) if row["line"] == "total"}


def control(content: bytes, name: str) -> str:
    return totals(content)[name]["control"].partition("=")[2]


def test_it_writes_a_request_as_it_stands_in_the_ledger() -> None:
    Provider.objects.create(pk=7, name="acme-llm")
    key = books.key(books.tenant("acme", timezone="Europe/Berlin"), "laptop")
    request_id = books.record(key, provider_id=7, end_user="u-1", client_request_id="c-1", stream=True)
    (line,) = data(export())
    assert line == {
        "line": "usage",
        "kind": "",
        "local_date": "2026-11-10",
        "started_at": "2026-11-10T13:00:00.000+01:00",
        "booked_at": "2026-11-10T13:00:00.000+01:00",
        "tenant": "acme",
        "key_id": key.public_id,
        "key_name": "laptop",
        "model": "acme-chat",
        "request_id": f"req_{request_id.hex}",
        "status": "completed",
        "estimated": "false",
        "http_status": "200",
        "error_code": "",
        "endpoint": "chat.completions",
        "stream": "true",
        "provider": "acme-llm",
        "requests": "1",
        "errors": "0",
        "unpriced": "0",
        "input_tokens": "1000",
        "cached_input_tokens": "200",
        "cache_write_tokens": "0",
        "output_tokens": "500",
        "reasoning_tokens": "50",
        "total_tokens": "1750",
        "charge_currency": "USD",
        "charge": "0.000495",
        "cost_currency": "USD",
        "cost": "0.0003",
        "client_request_id": "c-1",
        "end_user": "u-1",
        "reason": "",
        "served_model": "",
        "control": "",
    }


def test_it_says_which_model_answered_if_it_was_another() -> None:
    key = books.key(books.tenant("acme"))
    request_id = books.record(key, served_model="acme-small")
    books.adjustment(key, request_id, kind="correction", charge=-1)
    first, second = data(export())
    assert (first["model"], first["served_model"]) == ("acme-chat", "acme-small")
    assert (second["model"], second["served_model"]) == ("acme-chat", "")
    assert {line["model"] for line in data(export("day"))} == {"acme-chat"}


def test_it_shows_an_adjustment_as_a_line_of_its_own_after_its_request() -> None:
    key = books.key(books.tenant("acme"))
    request_id = books.record(key, charge=None)
    books.record(key, books.NOON + timedelta(minutes=1))
    books.adjustment(key, request_id, kind="rating", charge=250_000_000, reason="price of October")
    first, second, third = data(export())
    assert [line["line"] for line in (first, second, third)] == ["usage", "adjustment", "usage"]
    assert (first["charge"], first["unpriced"]) == ("", "1")  # unpriced is not zero
    assert (second["charge"], second["unpriced"], second["requests"]) == ("0.25", "-1", "0")
    assert (second["kind"], second["reason"]) == ("rating", "price of October")
    assert second["request_id"] == first["request_id"]
    day = data(export("day"))
    assert [(line["line"], line["kind"], line["requests"], line["charge"]) for line in day] == [
        ("usage", "", "2", "0.000495"),
        ("adjustment", "rating", "0", "0.25"),
    ]


def test_it_adds_up_in_every_currency_and_token_class() -> None:
    acme, globex = books.key(books.tenant("acme")), books.key(books.tenant("globex", currency="EUR"))
    for number in range(40):
        books.record(acme, books.NOON + timedelta(hours=7 * number), charge=9 * 10**17 + number, cost_currency="EUR")
        books.record(globex, books.NOON, charge_currency="EUR", charge=number, cost=None, cost_currency="")
    request_id = books.record(acme, status="unknown")
    books.adjustment(acme, request_id, charge=-495_000, input_tokens=-1000)
    by_request, by_day = export("request"), export("day")
    for content in (by_request, by_day):
        lines = data(content)
        control_lines = totals(content)
        for name in ("requests", "errors", "input_tokens", "output_tokens", "total_tokens"):
            assert sum(int(line[name]) for line in lines) == int(control_lines["all"][name])
        for side, currency in [("charge", "USD"), ("charge", "EUR"), ("cost", "EUR"), ("cost", "USD")]:
            amounts = [Decimal(x[side] or 0) for x in lines if x[f"{side}_currency"] == currency]
            assert sum(amounts) == Decimal(control_lines[f"{side} in {currency}"][side])
        assert int(control(content, "rows")) == len(lines)
    same = ("all", "charge in USD", "charge in EUR", "cost in USD", "cost in EUR")
    assert [totals(by_request)[name]["charge"] for name in same] == [totals(by_day)[name]["charge"] for name in same]
    # more nano-units than a bigint holds
    assert totals(by_day)["charge in USD"]["charge"] == "36000000000.00000078"


def test_its_digest_is_that_of_the_data_lines() -> None:
    key = books.key(books.tenant("acme"), 'line one\nline two, "quoted"')
    for _ in range(3):
        books.record(key)
    content = export()
    lines = content.splitlines(keepends=True)
    body = b"".join(line for line in lines[1:] if not line.startswith(b"total,"))
    assert hashlib.sha256(body).hexdigest() == control(content, "sha256")
    assert lines[-1].rstrip(b"\n").endswith(control(content, "sha256").encode())
    assert len({len(row) for row in csv.reader(io.StringIO(content.decode()))}) == 1


def test_it_repeats_what_was_asked_for() -> None:
    content = b"".join(csv_export.chunks(Selection(*NOVEMBER, by="day"), described="tenant=acme"))
    assert control(content, "period") == "2026-11-01..2026-11-30"
    assert (control(content, "by"), control(content, "tenant"), control(content, "rows")) == ("day", "acme", "0")
    assert totals(content)["all"]["requests"] == "0"


@pytest.mark.parametrize("by", ["request", "day"])
def test_a_request_belongs_to_the_tenant_s_own_day(by: By) -> None:
    """25 October 2026 has 25 hours in Berlin: 22:00 UTC to 23:00 UTC of the next day."""
    berlin = books.key(books.tenant("acme", timezone="Europe/Berlin"))
    auckland = books.key(books.tenant("globex", timezone="Pacific/Auckland"))
    niue = books.key(books.tenant("initech", timezone="Pacific/Niue"))
    for hour in range(-1, 26):
        books.record(berlin, datetime(2026, 10, 24, 22, 30, tzinfo=UTC) + timedelta(hours=hour))
    books.record(auckland, datetime(2026, 10, 24, 11, 0, tzinfo=UTC))  # midnight, UTC+13
    books.record(auckland, datetime(2026, 10, 25, 10, 59, 59, tzinfo=UTC))
    books.record(auckland, datetime(2026, 10, 25, 11, 0, tzinfo=UTC))
    books.record(niue, datetime(2026, 10, 26, 10, 59, 59, tzinfo=UTC))  # UTC-11
    day = date(2026, 10, 25)
    lines = data(export(by, (day, day)))
    counts = {"acme": 0, "globex": 0, "initech": 0}
    for line in lines:
        assert line["local_date"] == "2026-10-25"
        counts[line["tenant"]] += int(line["requests"])
    assert counts == {"acme": 25, "globex": 2, "initech": 1}


def test_the_doubled_hour_is_told_apart_by_its_offset() -> None:
    berlin = books.key(books.tenant("acme", timezone="Europe/Berlin"))
    books.record(berlin, datetime(2026, 10, 25, 0, 30, tzinfo=UTC))
    books.record(berlin, datetime(2026, 10, 25, 1, 30, tzinfo=UTC))
    lines = data(export(period=(date(2026, 10, 25), date(2026, 10, 25))))
    assert [line["started_at"] for line in lines] == [
        "2026-10-25T02:30:00.000+02:00",
        "2026-10-25T02:30:00.000+01:00",
    ]


def test_the_neighbour_sees_nothing() -> None:
    acme, globex = books.key(books.tenant("acme")), books.key(books.tenant("globex"))
    request_id = books.record(acme)
    books.adjustment(acme, request_id, charge=1)
    for by in ("request", "day"):
        assert data(export(by, tenant_id=globex.tenant_id)) == []
        assert data(export(by, key_id=globex.pk)) == []
        assert len(data(export(by, tenant_id=acme.tenant_id))) == 2


def test_it_filters_by_model_and_status() -> None:
    key = books.key(books.tenant("acme"))
    books.record(key, model="acme-mini")
    broken = books.record(key, status="unknown")
    books.adjustment(key, broken, kind="resolution", charge=3)
    assert [line["model"] for line in data(export(model="acme-mini"))] == ["acme-mini"]
    assert [line["line"] for line in data(export(status="unknown"))] == ["usage", "adjustment"]
    assert [line["line"] for line in data(export(status="completed"))] == ["usage"]


@pytest.mark.parametrize(
    "evil, cell",
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "' =1"),
        ("  =1", "'  =1"),
        ("\r\n=1", "'  =1"),
        ("＝1", "'＝1"),
        ("a\nb", "a b"),
        ("laptop", "laptop"),
        ("Müller, \"KG\"", "Müller, \"KG\""),
    ],
)  # fmt: skip
def test_no_cell_of_text_is_run_by_a_spreadsheet(evil: str, cell: str) -> None:
    key = books.key(books.tenant("acme"), "k")
    type(key).objects.filter(pk=key.pk).update(name=evil)
    books.record(key, end_user=evil)
    (line,) = data(export())
    assert (line["key_name"], line["end_user"]) == (cell, cell)


def test_a_negative_amount_stays_a_number() -> None:
    key = books.key(books.tenant("acme"))
    books.adjustment(key, books.record(key), charge=-5, input_tokens=-3)
    line = data(export())[1]
    assert (line["charge"], line["input_tokens"]) == ("-0.000000005", "-3")


@pytest.mark.parametrize("by", ["request", "day"])
def test_pages_of_any_size_say_the_same(by: By) -> None:
    keys = [books.key(books.tenant(slug)) for slug in ("acme", "globex")]
    for number in range(23):
        started = books.NOON + timedelta(hours=9 * number)
        request_id = books.record(keys[number % 2], started)
        if number % 5 == 0:
            books.adjustment(keys[number % 2], request_id, started, charge=number)
    selection = Selection(*NOVEMBER, by=by)
    seen = snapshot.take()
    module = request_lines if by == "request" else day_lines
    whole = [line for page in module.pages(selection, seen) for line in page]
    assert len(whole) >= 23
    for rows_a_page in (1, 2, 7):
        assert [line for page in module.pages(selection, seen, rows=rows_a_page) for line in page] == whole


@pytest.mark.parametrize("by", ["request", "day"])
def test_what_is_booked_while_it_runs_is_left_out(by: By) -> None:
    key = books.key(books.tenant("acme"))
    for _ in range(3):
        books.record(key)
    chunks = csv_export.chunks(Selection(*NOVEMBER, by=by))
    head = next(chunks)  # the snapshot is taken
    late = books.record(key, books.NOON - timedelta(days=5))
    books.adjustment(key, late, books.NOON - timedelta(days=5), charge=1)
    content = head + b"".join(chunks)
    assert totals(content)["all"]["requests"] == "3"
    assert totals(export(by))["all"]["requests"] == "4"


def test_it_refuses_bad_selections() -> None:
    with pytest.raises(BadSelection, match="ends before it begins"):
        Selection(date(2026, 2, 1), date(2026, 1, 31))
    with pytest.raises(BadSelection, match="by=request"):
        Selection(*NOVEMBER, by="day", status="failed")
    for bad in ("2026-02-30", "20260201", "01.02.2026", "", "2026-2-1", "2026-W01-1"):
        with pytest.raises(BadSelection, match="YYYY-MM-DD"):
            parse_day("from", bad)


@pytest.mark.parametrize("by", ["request", "day"])
def test_it_takes_any_period_that_a_date_can_say(by: By) -> None:
    books.record(books.key(books.tenant("acme")))
    assert len(data(export(by, (date.min, date.max)))) == 1
