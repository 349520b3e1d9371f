"""Filters that read no more of a partitioned table than they must."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.contrib.filters.admin import DropdownFilter, RangeDateFilter, TextFilter

# A tenant's day begins up to 14 hours before UTC's and ends up to 12 hours after it; ids are made by the
# servers' clocks, dates by the database's.
SLACK = timedelta(hours=26)


def first_id(at: datetime) -> UUID:
    """The smallest UUIDv7 of that millisecond."""
    milliseconds = max(0, int(at.timestamp() * 1000))
    return UUID(int=milliseconds << 80)


class DayFilter(RangeDateFilter):
    """Days of the tenant's calendar, with bounds on the id, so that PostgreSQL leaves other months alone."""

    id_field = "request_id"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        found: QuerySet[Any] | None = super().queryset(request, queryset)
        if found is None:
            return None
        first, last = (self._day(end) for end in ("from", "to"))
        if first is not None:
            found = found.filter(**{f"{self.id_field}__gte": first_id(_midnight(first) - SLACK)})
        if last is not None:
            found = found.filter(**{f"{self.id_field}__lt": first_id(_midnight(last) + timedelta(days=1) + SLACK)})
        return found

    def _day(self, end: str) -> date | None:
        try:
            return date.fromisoformat(self.used_parameters.get(f"{self.parameter_name}_{end}") or "")
        except ValueError:
            return None


class InstantFilter(DayFilter):
    """As days of UTC, of a moment at or soon after the request began."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        first, last = (self._day(end) for end in ("from", "to"))
        if first is not None:
            bounds = {
                f"{self.field_path}__gte": _midnight(first),
                f"{self.id_field}__gte": first_id(_midnight(first) - SLACK),
            }
            queryset = queryset.filter(**bounds)
        if last is not None:
            end = _midnight(last) + timedelta(days=1)
            queryset = queryset.filter(
                **{f"{self.field_path}__lt": end, f"{self.id_field}__lt": first_id(end + SLACK)}
            )
        return queryset


class ModelFilter(TextFilter):
    """A public id, whole: names that left the catalogue can still be asked for."""

    title = "model"
    parameter_name = "model"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = (self.value() or "").strip()
        return queryset.filter(model=value) if value else queryset


class OpenFilter(DropdownFilter):
    """Open unless asked otherwise."""

    title = "state"
    parameter_name = "state"
    all_option = ["", "Open"]

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("resolved", "Resolved"), ("all", "All")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "all":
            return queryset
        return queryset.filter(resolved_at__isnull=self.value() != "resolved")


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)
