"""The ledger line by line: each usage record, followed by the adjustments that correct it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection

from gateway.reports.selection import Selection
from gateway.reports.snapshot import VISIBLE

PAGE = 5_000  # ledger rows a statement: about 50 ms


class RequestLine(NamedTuple):
    """One line, in the order of `_SELECT`. Amounts are nano-units; a charge of None is unpriced."""

    line: str  # usage | adjustment
    kind: str  # of the adjustment
    request_id: UUID  # of an adjustment: the request that it corrects
    id: UUID  # the request's, or the adjustment's own
    local_date: date
    started_at: datetime
    booked_at: datetime  # settled, or adjusted
    tenant: str
    timezone: str
    key_id: str  # public id
    key_name: str
    model: str
    provider: str
    endpoint: str
    stream: bool | None
    status: str
    estimated: bool | None
    http_status: int | None
    error_code: str
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    charge_currency: str
    charge: int | None
    cost_currency: str
    cost: int | None
    client_request_id: str
    end_user: str
    reason: str
    served_model: str  # empty: `model`

    @property
    def requests(self) -> int:
        return 1 if self.line == "usage" else 0

    @property
    def errors(self) -> int:
        return 1 if self.requests and self.status != "completed" else 0

    @property
    def unpriced(self) -> int:
        if self.requests:
            return 1 if self.charge is None else 0
        return -1 if self.kind == "rating" else 0

    @property
    def total_tokens(self) -> int:
        return (
            self.input_tokens
            + self.cached_input_tokens
            + self.cache_write_tokens
            + self.output_tokens
            + self.reasoning_tokens
        )


_TOKENS = "input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens"
_WINDOW = "request_id > %(low)s AND request_id < %(high)s"
_STATUS = " AND request_id IN (SELECT request_id FROM ledger_usagerecord WHERE {window} AND status = %(status)s)"


def _select(selection: Selection, window: str, direction: str) -> str:
    """Lines of a window of request ids. `window` and `direction` are SQL of this module."""
    condition = f"{window} AND {selection.condition()} AND {VISIBLE}"
    status = _STATUS.format(window=window) if selection.status else ""
    return f"""
SELECT l.line, l.kind, l.request_id, l.id, l.local_date, l.started_at, l.booked_at, t.slug, t.timezone,
       k.public_id, k.name, l.model, coalesce(p.name, ''), l.endpoint, l.stream, l.status, l.estimated,
       l.http_status, l.error_code, {", ".join("l." + name for name in _TOKENS.split(", "))},
       l.charge_currency, l.charge, l.cost_currency, l.cost, l.client_request_id, l.end_user, l.reason,
       l.served_model
FROM (
    SELECT 'usage' AS line, '' AS kind, request_id, request_id AS id, local_date, started_at,
           ended_at AS booked_at, tenant_id, key_id, model, provider_id, endpoint, stream, status, estimated,
           http_status, error_code, {_TOKENS}, charge_currency, charge, cost_currency, cost,
           client_request_id, end_user, '' AS reason, served_model
      FROM ledger_usagerecord WHERE {condition}{status}
    UNION ALL
    SELECT 'adjustment', kind, request_id, id, local_date, started_at,
           created_at, tenant_id, key_id, model, NULL, '', NULL, '', NULL,
           NULL, '', {_TOKENS}, charge_currency, charge, cost_currency, cost, '', '', reason, ''
      FROM ledger_adjustment WHERE {condition}{status}
) l
JOIN tenants_tenant t ON t.id = l.tenant_id
JOIN tenants_apikey k ON k.id = l.key_id
LEFT JOIN catalogue_provider p ON p.id = l.provider_id
ORDER BY l.request_id {direction}, l.line DESC, l.booked_at, l.id"""


def pages(selection: Selection, snapshot: str, *, rows: int = PAGE) -> Iterator[list[RequestLine]]:
    """All lines as of a snapshot, oldest request first; constant memory, each page a statement of its own.

    A page spans a number of ledger rows, whatever the filters keep of them: so no statement runs long.
    """
    for low, high in windows(selection, rows=rows):
        parameters = {**selection.parameters(), "snapshot": snapshot, "low": low, "high": high}
        yield _fetch(_select(selection, _WINDOW_UP_TO, "ASC"), parameters)


_WINDOW_UP_TO = "request_id > %(low)s AND request_id <= %(high)s"


def windows(selection: Selection, *, rows: int) -> Iterator[tuple[UUID, UUID]]:
    """Cut the period into (above, up to) of at most `rows` ledger rows each."""
    low, end = selection.bounds()
    bound = f"""
SELECT request_id FROM ledger_usagerecord WHERE {_WINDOW}{selection.owner()}
 ORDER BY request_id OFFSET %(rows)s - 1 LIMIT 1"""
    while True:
        parameters = {**selection.parameters(), "low": low, "high": end, "rows": rows}
        with connection.cursor() as cursor:
            cursor.execute(bound, parameters)
            found = cursor.fetchone()
        yield low, (found[0] if found else end)
        if found is None:
            return
        low = found[0]


def newest(
    selection: Selection, snapshot: str, *, limit: int, before: UUID | None = None
) -> tuple[list[RequestLine], bool]:
    """The last `limit` requests of the selection (below `before`) with their adjustments, newest first; and
    whether there are more."""
    low, high = selection.bounds()
    parameters = {
        **selection.parameters(),
        "snapshot": snapshot,
        "low": low,
        "high": min(high, before) if before else high,
        "limit": limit,
    }
    status = " AND status = %(status)s" if selection.status else ""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""SELECT request_id FROM ledger_usagerecord
                 WHERE {_WINDOW} AND {selection.condition()} AND {VISIBLE}{status}
                 ORDER BY request_id DESC LIMIT %(limit)s + 1""",
            parameters,
        )
        ids = [row[0] for row in cursor.fetchall()]
    if not ids:
        return [], False
    more = len(ids) > limit
    if more:
        parameters["low"] = ids[-1]
    return _fetch(_select(selection, _WINDOW, "DESC"), parameters), more


def _fetch(statement: str, parameters: dict[str, Any]) -> list[RequestLine]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return [RequestLine._make(row) for row in cursor.fetchall()]
