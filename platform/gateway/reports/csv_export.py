"""A report as CSV: a header, the data lines, then `total` lines that say what the file must add up to.

UTF-8, comma, one line of text per row, "\\n" at its end. Amounts are exact decimal strings, times ISO 8601 in
the tenant's zone with the offset. A file without its last line (`total` ... `sha256=`) is not whole.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

from gateway.billing.facts import TOKENS
from gateway.catalogue.pricing import format_amount
from gateway.reports import day_lines, request_lines, snapshot
from gateway.reports.day_lines import DayLine
from gateway.reports.request_lines import RequestLine
from gateway.reports.selection import Selection

Line = RequestLine | DayLine
Cell = str | int | None

_SUMMED = ("requests", "errors", "unpriced", *TOKENS, "total_tokens")
_MONEY = ("charge_currency", "charge", "cost_currency", "cost")
_WHOSE = ("tenant", "key_id", "key_name", "model")
REQUEST_COLUMNS = (
    *("line", "kind", "local_date", "started_at", "booked_at", *_WHOSE, "request_id", "status", "estimated"),
    *("http_status", "error_code", "endpoint", "stream", "provider", *_SUMMED, *_MONEY),
    *("client_request_id", "end_user", "reason", "served_model", "control"),
)
DAY_COLUMNS = ("line", "kind", "local_date", *_WHOSE, *_SUMMED, *_MONEY, "control")

# What a spreadsheet takes for a formula, full-width forms included; leading blanks do not stop it.
_FORMULA = tuple("=+-@＝＋－＠")


def text(value: str) -> str:
    """A cell that no spreadsheet runs and that stays on its line. Numbers do not come here."""
    if not value:
        return value
    if not value.isprintable():
        value = "".join(c if c.isprintable() else " " for c in value)
    return "'" + value if value.lstrip().startswith(_FORMULA) else value


def chunks(
    selection: Selection, *, described: str = "", progress: Callable[[int], None] | None = None
) -> Iterator[bytes]:
    """The file, a page at a time. `described` repeats in the file what was asked for."""
    seen = snapshot.take()
    table = _Table(selection)
    yield table.header()
    pages: Iterator[list[RequestLine]] | Iterator[list[DayLine]]
    pages = (request_lines if selection.by == "request" else day_lines).pages(selection, seen)
    for page in pages:
        if page:
            yield table.data(page)
        if progress:
            progress(table.rows)
    yield table.totals(described=described, watermark=seen)


class _Table:
    """Writes lines and keeps the control totals of what it wrote."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.columns = REQUEST_COLUMNS if selection.by == "request" else DAY_COLUMNS
        self.rows = 0
        self.sums: Counter[str] = Counter()
        self.charges: Counter[str] = Counter()
        self.costs: Counter[str] = Counter()
        self.digest = hashlib.sha256()

    def header(self) -> bytes:
        return _encode([list(self.columns)])

    def data(self, page: list[RequestLine] | list[DayLine]) -> bytes:
        for line in page:
            self._count(line)
        cells = [request_cells(line) if isinstance(line, RequestLine) else day_cells(line) for line in page]
        encoded = _encode(cells)
        self.digest.update(encoded)
        return encoded

    def _count(self, line: Line) -> None:
        self.rows += 1
        sums = self.sums
        for name in _SUMMED:
            sums[name] += getattr(line, name)
        self.charges[line.charge_currency] += line.charge or 0
        if line.cost_currency:
            self.costs[line.cost_currency] += line.cost or 0

    def totals(self, *, described: str, watermark: str) -> bytes:
        """One line for counts and tokens, one per currency and side, then the facts about the file."""
        lines: list[dict[str, Cell]] = [{**{name: self.sums[name] for name in _SUMMED}, "control": "all"}]
        for side, amounts in (("charge", self.charges), ("cost", self.costs)):
            for currency, amount in sorted(amounts.items()):
                money: dict[str, Cell] = {f"{side}_currency": currency, side: format_amount(amount)}
                lines.append({**money, "control": f"{side} in {currency}"})
        period = f"{self.selection.first}..{self.selection.last}"
        facts = [f"by={self.selection.by}", f"period={period}", text(described), f"rows={self.rows}"]
        facts += [f"watermark={watermark}", f"sha256={self.digest.hexdigest()}"]
        lines += [{"control": fact} for fact in facts if fact]
        return _encode([[line.get(name) for name in self.columns] for line in _marked(lines)])


def _marked(lines: list[dict[str, Cell]]) -> list[dict[str, Cell]]:
    return [{"line": "total", **line} for line in lines]


def _encode(rows: list[list[Cell]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


@lru_cache(maxsize=1024)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _time(at: datetime, zone: str) -> str:
    return at.astimezone(_zone(zone)).isoformat(timespec="milliseconds")


def _amount(nano: int | None) -> str:
    return "" if nano is None else format_amount(nano)


def _flag(value: bool | None) -> str:
    return "" if value is None else "true" if value else "false"


def request_cells(line: RequestLine) -> list[Cell]:
    """In the order of REQUEST_COLUMNS."""
    return [
        *(line.line, line.kind, line.local_date.isoformat()),
        *(_time(line.started_at, line.timezone), _time(line.booked_at, line.timezone)),
        *(text(line.tenant), line.key_id, text(line.key_name), text(line.model)),
        *("req_" + line.request_id.hex, line.status, _flag(line.estimated), line.http_status),
        *(text(line.error_code), line.endpoint, _flag(line.stream), text(line.provider)),
        *_summed_cells(line),
        *(text(line.client_request_id), text(line.end_user), text(line.reason)),
        *(text(line.served_model), None),
    ]


def day_cells(line: DayLine) -> list[Cell]:
    """In the order of DAY_COLUMNS."""
    return [
        *(line.line, line.kind, line.local_date.isoformat()),
        *(text(line.tenant), line.key_id, text(line.key_name), text(line.model)),
        *_summed_cells(line),
        None,
    ]


def _summed_cells(line: Line) -> list[Cell]:
    return [
        *(line.requests, line.errors, line.unpriced, line.input_tokens, line.cached_input_tokens),
        *(line.cache_write_tokens, line.output_tokens, line.reasoning_tokens, line.total_tokens),
        *(line.charge_currency, _amount(line.charge), line.cost_currency, _amount(line.cost)),
    ]
