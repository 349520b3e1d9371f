"""What was done, or would be: one block per thing, in the form of a diff. Secrets are never among it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

SIGNS = {"created": "+", "changed": "~", "removed": "-", "unchanged": "="}
SECRET = "••••"
SECRETS = {"credential"}


@dataclass(frozen=True, slots=True)
class Change:
    what: str  # created | changed | removed | unchanged
    thing: str
    fields: tuple[tuple[str, str, str], ...] = ()  # name, old, new


@dataclass(slots=True)
class Report:
    changes: list[Change] = field(default_factory=list)

    def created(self, thing: str, values: Mapping[str, Any]) -> None:
        given = {name: value for name, value in values.items() if value not in (None, "", [])}
        shown = tuple((name, "", _shown(name, value)) for name, value in given.items())
        self.changes.append(Change("created", thing, shown))

    def compared(self, thing: str, changed: Mapping[str, tuple[Any, Any]]) -> None:
        """Changed fields with their old and new values; none: unchanged."""
        shown = tuple((name, _shown(name, old), _shown(name, new)) for name, (old, new) in changed.items())
        self.changes.append(Change("changed" if shown else "unchanged", thing, shown))

    def removed(self, thing: str) -> None:
        self.changes.append(Change("removed", thing))

    @property
    def empty(self) -> bool:
        return all(change.what == "unchanged" for change in self.changes)

    def lines(self) -> Iterator[str]:
        for change in self.changes:
            yield f"{SIGNS[change.what]} {change.thing}"
            for name, old, new in change.fields:
                yield f"    {name}: {new}" if change.what == "created" else f"    {name}: {old} -> {new}"

    def summary(self) -> str:
        counts = {what: sum(change.what == what for change in self.changes) for what in SIGNS}
        if self.empty:
            return f"Nothing to do: {counts['unchanged']} unchanged."
        told = {what: count for what, count in counts.items() if count or what != "removed"}
        return ", ".join(f"{count} {what}" for what, count in told.items()) + "."


def _shown(name: str, value: Any) -> str:
    if value in (None, "", []):
        return "none"
    if name in SECRETS:
        return SECRET
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)
