"""What each part of a run has counted, for the tables at its end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from tests.faults.audit import Audit

COLUMNS = (
    "requests",
    "whole",
    "errors",
    "broken",
    "refused",
    "left",
    "seen",
    "attempts",
    "completed",
    "interrupted",
    "failed",
    "unknown",
    "none",
    "drift",
)


class Tally:
    def __init__(self) -> None:
        self.rows: list[tuple[str, Mapping[str, Any], str]] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, name: str, audit: Audit, drift: int, note: object = "") -> None:
        self.rows.append((name, row_of(audit) | {"drift": drift}, str(note)))

    def note(self, name: str, *, said: object = "", **counts: int) -> None:
        """For what no audit counts."""
        self.rows.append((name, counts, str(said)))

    def lines(self) -> list[str]:
        """A table: what was asked, what clients saw, what providers saw, what the ledger says."""
        wide = max([len(name) for name, _, _ in self.rows], default=0)
        heads = [f"{column:>{max(5, len(column))}}" for column in COLUMNS]
        lines = [f"{'':{wide}} {' '.join(heads)}"]
        for name, counts, note in self.rows:
            cells = [f"{counts.get(column, 0):>{len(head)}}" for column, head in zip(COLUMNS, heads, strict=True)]
            lines.append(f"{name:{wide}} {' '.join(cells)}  {note}".rstrip())
        return lines


def row_of(audit: Audit) -> dict[str, int]:
    found: Counter[str] = Counter()
    for case in audit.cases.values():
        reply = case.sent.reply
        found["requests"] += 1
        if reply.whole:
            found["whole"] += 1
        elif reply.end == "left":
            found["left"] += 1
        elif not reply.status:
            found["refused"] += 1
        else:
            found["errors" if reply.status != 200 else "broken"] += 1
        found["seen"] += len(case.served)
        found["attempts"] += len(case.attempts) or (case.status == "completed")
        found[case.status] += 1
    return dict(found)
