"""Windows, pure: a window is a function of the clock and the tenant's zone, never of a job that ran in time.

Calendar windows are half-open and start at local midnight; where a day has no midnight (a clock change at 00:00),
at its first instant. DST days have 23 or 25 hours. `total` is one window for ever; the sliding minute is not a
calendar window and has one row for ever too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

EVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Window:
    start: datetime  # UTC, inclusive
    end: datetime | None  # UTC, exclusive; None: for ever
    starts: int = field(init=False, compare=False)  # epoch seconds
    ends: int = field(init=False, compare=False)  # -1: for ever

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", int(self.start.timestamp()))
        object.__setattr__(self, "ends", -1 if self.end is None else int(self.end.timestamp()))

    def holds(self, now: datetime) -> bool:
        return self.start <= now and (self.end is None or now < self.end)


FOREVER = Window(EVER, None)
# What was asked for last, since it is asked for with every request: as many as there are zones and calendars.
_latest: dict[tuple[str, ZoneInfo, int], Window] = {}


def window_at(per: str, now: datetime, zone: ZoneInfo, *, fiscal_day: int = 1) -> Window:
    """The window of `per` (day, week, month, fiscal_month, total, minute or "") that holds `now`."""
    if per in ("", "minute", "total"):
        return FOREVER
    known = _latest.get((per, zone, fiscal_day))
    if known is None or not known.holds(now):
        known = _latest[per, zone, fiscal_day] = _calendar_window(per, now, zone, fiscal_day)
    return known


def _calendar_window(per: str, now: datetime, zone: ZoneInfo, fiscal_day: int) -> Window:
    today = now.astimezone(zone).date()
    first, after = _days(per, today, fiscal_day)
    return Window(_begin(first, zone), _begin(after, zone))


def _days(per: str, today: date, fiscal_day: int) -> tuple[date, date]:
    if per == "day":
        return today, today + timedelta(days=1)
    if per == "week":  # ISO: Monday
        first = today - timedelta(days=today.weekday())
        return first, first + timedelta(days=7)
    day = fiscal_day if per == "fiscal_month" else 1
    first = today.replace(day=day)
    if first > today:
        first = _month_after(first, -1)
    return first, _month_after(first, 1)


def _month_after(day: date, months: int) -> date:
    index = day.year * 12 + day.month - 1 + months
    return day.replace(year=index // 12, month=index % 12 + 1)


def _begin(day: date, zone: ZoneInfo) -> datetime:
    """The first instant of a local day. `fold=0` takes the first midnight where there are two."""
    local = datetime.combine(day, time(), zone)
    instant = local.astimezone(UTC)
    if instant.astimezone(zone).date() == day:
        return instant
    # The clock jumps over midnight: the day begins where the jump lands.
    step = instant
    while step.astimezone(zone).date() < day:
        step += timedelta(minutes=1)
    while step.astimezone(zone).date() > day:
        step -= timedelta(minutes=1)
    return step
