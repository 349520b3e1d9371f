"""What a report is asked for: a period of local days and, if wanted, one tenant, key, model or status."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any, Literal
from uuid import UUID

By = Literal["request", "day"]

_EPOCH = date(1970, 1, 1).toordinal()
_DAY_MS = 86_400_000
# Local days run from UTC-12 to UTC+14, and a request's id is made by the server's clock a little before the
# database's clock says when it started: a day more on both sides costs nothing, `local_date` decides.
_SLACK_MS = 2 * _DAY_MS


class BadSelection(ValueError):
    """What was asked for makes no sense; the text says which parameter is wrong, and how to put it right."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(message)
        self.parameter = parameter


@dataclass(frozen=True, slots=True)
class Selection:
    """`first` and `last` are local days of each tenant, both included."""

    first: date
    last: date
    by: By = "request"
    tenant_id: int | None = None
    key_id: int | None = None
    model: str = ""
    status: str = ""

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise BadSelection("from", f"The period ends before it begins: from {self.first} to {self.last}.")
        if self.status and self.by == "day":
            raise BadSelection("status", "A status belongs to a request: use by=request, or leave status out.")

    def bounds(self) -> tuple[UUID, UUID]:
        """Request ids (time-ordered) between which everything of the period lies: above the first, below the
        second. More lies there, too: days begin at different times in different zones."""
        low = (self.first.toordinal() - _EPOCH) * _DAY_MS - _SLACK_MS
        high = (self.last.toordinal() + 1 - _EPOCH) * _DAY_MS + _SLACK_MS
        return uuid_at(low), uuid_at(high)

    def owner(self) -> str:
        """SQL for what the ledger has indexes for."""
        return (
            ("" if self.tenant_id is None else " AND tenant_id = %(tenant_id)s")
            + ("" if self.key_id is None else " AND key_id = %(key_id)s")
        )  # fmt: skip

    def condition(self) -> str:
        """SQL for all of it but the status, on columns that records, adjustments and sums have."""
        return (
            "local_date BETWEEN %(first)s AND %(last)s"
            + self.owner()
            + (" AND model = %(model)s" if self.model else "")
        )

    def parameters(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "last": self.last,
            "tenant_id": self.tenant_id,
            "key_id": self.key_id,
            "model": self.model,
            "status": self.status,
        }


def uuid_at(unix_ms: int) -> UUID:
    """The smallest UUIDv7 of an instant."""
    return UUID(int=min(max(unix_ms, 0), 2**48 - 1) << 80)


def parse_day(parameter: str, text: str) -> date:
    """YYYY-MM-DD, or BadSelection."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise BadSelection(parameter, f"{text!r} is not a day: write YYYY-MM-DD, such as 2026-11-30.") from None
    if text != day.isoformat():  # Python also reads 20261130 and 2026-W48-1
        raise BadSelection(parameter, f"{text!r} is not a day: write YYYY-MM-DD, such as {day}.")
    return day
