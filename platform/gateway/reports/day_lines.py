"""The ledger summed by day x tenant x key x model x currencies, adjustments as lines of their own.

Exports sum the ledger itself (`pages`), as of one snapshot, so that they are evidence; whoever only looks
(`newest`, for the APIs) gets `day_sums`, which say the same at every instant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection

from gateway.billing.facts import DIMENSIONS, facts_of, sums
from gateway.reports.day_sums import newest_sums
from gateway.reports.request_lines import windows
from gateway.reports.selection import Selection
from gateway.reports.snapshot import VISIBLE

WINDOW = 20_000  # ledger rows a statement: about 100 ms
# A day is over everywhere 12 h after it is over in UTC; a day more, as in Selection.bounds.
_OVER = timedelta(days=2)

Group = tuple[date, int, int, str, str, str, str]  # billing.facts.DIMENSIONS


class DayLine(NamedTuple):
    """Amounts are nano-units. `charge` leaves out what is `unpriced`."""

    line: str  # usage | adjustment
    kind: str
    local_date: date
    tenant: str
    key_id: str  # public id
    key_name: str
    model: str
    charge_currency: str
    cost_currency: str
    requests: int
    errors: int
    unpriced: int
    adjustments: int
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    charge: int
    cost: int

    @property
    def total_tokens(self) -> int:
        return (
            self.input_tokens
            + self.cached_input_tokens
            + self.cache_write_tokens
            + self.output_tokens
            + self.reasoning_tokens
        )


def pages(selection: Selection, snapshot: str, *, rows: int = WINDOW) -> Iterator[list[DayLine]]:
    """All day lines as of a snapshot, oldest day first. Memory: the groups of the few days that are not over
    in every zone, whatever the number of requests."""
    open_groups: dict[Group, list[int]] = {}
    window = f"request_id > %(low)s AND request_id <= %(high)s AND {selection.condition()} AND {VISIBLE}"
    statement = (
        f"SELECT {', '.join(DIMENSIONS)}, {sums()} FROM ({facts_of(window)}) AS facts "
        f"GROUP BY {', '.join(DIMENSIONS)}"
    )
    for low, high in windows(selection, rows=rows):
        parameters = {**selection.parameters(), "snapshot": snapshot, "low": low, "high": high}
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            for row in cursor.fetchall():
                _add(open_groups, row[: len(DIMENSIONS)], row[len(DIMENSIONS) :])
        yield _take(open_groups, before=_date_of(high) - _OVER)
    yield _take(open_groups, before=date.max)


def newest(selection: Selection, *, limit: int, before: Group | None = None) -> tuple[list[DayLine], Group | None]:
    """The last `limit` groups of the selection (below `before`), newest day first; and where to go on from."""
    groups, more = newest_sums(selection, DIMENSIONS, limit=limit, before=before)
    last: Group | None = list(groups)[-1] if more else None  # type: ignore[assignment]
    return _named(groups), last  # type: ignore[arg-type]


def _add(groups: dict[Group, list[int]], group: Group, measures: Iterable[Any]) -> None:
    values = [int(value) for value in measures]
    known = groups.get(group)
    groups[group] = values if known is None else [a + b for a, b in zip(known, values, strict=True)]


def _take(groups: dict[Group, list[int]], *, before: date) -> list[DayLine]:
    """Remove the groups of days before this one; sorted as people read them."""
    done = {group: groups.pop(group) for group in [group for group in groups if group[0] < before]}
    return sorted(_named(done), key=lambda line: (line.local_date, line.tenant, *line[4:9], line.kind))


def _named(groups: dict[Group, list[int]]) -> list[DayLine]:
    """Ids to the names that people know, in one query for the keys of all groups."""
    if not groups:
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT k.id, t.slug, k.public_id, k.name FROM tenants_apikey k JOIN tenants_tenant t"
            " ON t.id = k.tenant_id WHERE k.id = ANY(%s)",
            [list({group[2] for group in groups})],
        )
        names = {row[0]: row[1:] for row in cursor.fetchall()}
    lines = []
    for (day, _, key, *rest), measures in groups.items():
        model, kind, charge_currency, cost_currency = rest
        line = "adjustment" if kind else "usage"
        lines.append(DayLine._make([line, kind, day, *names[key], model, charge_currency, cost_currency, *measures]))
    return lines


def _date_of(request_id: UUID) -> date:
    days = date(1970, 1, 1).toordinal() + (request_id.int >> 80) // 86_400_000
    return date.fromordinal(min(days, date.max.toordinal()))
