"""Where a page of the finance API ended: signed, so that a client can only hand back what it was given."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import cast
from uuid import UUID

from django.core import signing

from gateway.reports.day_lines import Group
from gateway.reports.selection import BadSelection

SALT = "gateway.reports.cursor"


@dataclass(frozen=True, slots=True)
class RequestCursor:
    """All pages are of one state of the ledger."""

    snapshot: str
    before: UUID

    def text(self) -> str:
        return signing.dumps(["request", self.snapshot, self.before.hex], salt=SALT)

    @classmethod
    def read(cls, text: str) -> RequestCursor:
        _, snapshot, before = _loads(text, "request")
        return cls(str(snapshot), UUID(str(before)))


@dataclass(frozen=True, slots=True)
class DayCursor:
    before: Group

    def text(self) -> str:
        return signing.dumps(["day", self.before[0].isoformat(), *self.before[1:]], salt=SALT)

    @classmethod
    def read(cls, text: str) -> DayCursor:
        _, day, *rest = _loads(text, "day")
        return cls(cast(Group, (date.fromisoformat(str(day)), *rest)))


def _loads(text: str, kind: str) -> list[object]:
    try:
        value = signing.loads(text, salt=SALT)
    except signing.BadSignature:
        value = [""]
    if value[0] != kind:
        raise BadSelection("cursor", "This is no cursor of this list: follow `next` of the page before.")
    return list(value)
