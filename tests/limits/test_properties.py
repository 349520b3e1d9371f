"""Windows, sliding minutes and fits against slow models that are obviously right."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.db import connection
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.catalogue.pricing import CLASSES, Rates, hold
from gateway.limits.claims import Need, affordable_output, claims_for
from gateway.limits.facts import Rule
from gateway.limits.windows import window_at

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",
    "Africa/Cairo",
    "Asia/Beirut",
    "Asia/Tehran",
]
ZONES += ["Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu", "Asia/Tehran", "America/Havana", "Atlantic/Azores"]
zones = st.sampled_from(ZONES).map(ZoneInfo)
instants = st.datetimes(datetime(2005, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))
calendars = st.sampled_from(["day", "week", "month", "fiscal_month"])
slow = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(calendars, instants, zones, st.integers(1, 28))
@example("day", datetime(2026, 3, 29, 0, 30, tzinfo=UTC), ZoneInfo("Europe/Berlin"), 1)
@example("day", datetime(2018, 11, 4, 3, 30, tzinfo=UTC), ZoneInfo("America/Sao_Paulo"), 1)  # has no midnight
def test_windows_follow_each_other_without_gap_or_overlap(
    per: str, now: datetime, zone: ZoneInfo, fiscal_day: int
) -> None:
    window = window_at(per, now, zone, fiscal_day=fiscal_day)
    assert window.holds(now)
    assert window.end is not None
    assert window_at(per, window.start, zone, fiscal_day=fiscal_day) == window
    assert window_at(per, window.end, zone, fiscal_day=fiscal_day).start == window.end
    just_before = window.end - timedelta(microseconds=1)
    assert window_at(per, just_before, zone, fiscal_day=fiscal_day) == window


@given(calendars, instants, zones, st.integers(1, 28))
def test_windows_are_local_days(per: str, now: datetime, zone: ZoneInfo, fiscal_day: int) -> None:
    window = window_at(per, now, zone, fiscal_day=fiscal_day)
    first = window.start.astimezone(zone)
    before = (window.start - timedelta(microseconds=1)).astimezone(zone)
    assert first.date() > before.date()  # a day begins at its first instant, whatever the clock says then
    if per == "week":
        assert first.weekday() == 0
    if per in ("month", "fiscal_month"):
        assert first.day == (fiscal_day if per == "fiscal_month" else 1) or first.date() - before.date() > timedelta(
            1
        )


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-11-22", 24)])
def test_days_of_a_clock_change_have_23_or_25_hours(day: str, hours: int) -> None:
    zone = ZoneInfo("Europe/Berlin")
    window = window_at("day", datetime.fromisoformat(f"{day}T12:00").replace(tzinfo=zone), zone)
    assert window.end is not None
    assert window.end - window.start == timedelta(hours=hours)


class Minute:
    """The SQL of the sliding minute, at a time of our choosing."""

    def __init__(self) -> None:
        self.slots: list[int] | None = None
        self.slot_at: int | None = None

    def taken(self, at: int) -> int:
        with connection.cursor() as cursor:
            at = max(at, self.slot_at or at)
            cursor.execute("SELECT ledger_slots_sum(%s::bigint[], %s::bigint, %s)", [self.slots, self.slot_at, at])
            return int(cursor.fetchone()[0])

    def add(self, at: int, amount: int) -> None:
        newest = max(at, self.slot_at or at)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT ledger_slots_add(%s::bigint[], %s::bigint, ARRAY[%s]::bigint[], ARRAY[%s]::numeric[], %s)",
                [self.slots, self.slot_at, at, amount, newest],
            )
            self.slots, self.slot_at = cursor.fetchone()[0], newest


@pytest.mark.django_db
@slow
@given(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 50)), max_size=25))
def test_a_sliding_minute_counts_the_last_61_seconds(steps: list[tuple[int, int]]) -> None:
    minute, events, at = Minute(), [], 1_800_000_000
    for pause, amount in steps:
        at += pause
        assert minute.taken(at) == sum(a for second, a in events if second > at - 61)
        minute.add(at, amount)
        events.append((at, amount))


@pytest.mark.django_db
@slow
@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.integers(1, 10))
def test_no_sixty_seconds_ever_hold_more_than_the_limit(pauses: list[int], limit: int) -> None:
    """Whatever the fractions of the seconds: a request may be at the end of its second, another at the beginning."""
    minute, admitted, at = Minute(), [], 1_800_000_000
    for pause in pauses:
        at += pause
        if minute.taken(at) + 1 <= limit:
            minute.add(at, 1)
            admitted.append(at)
    for second in admitted:
        assert sum(1 for other in admitted if second - 60 <= other <= second) <= limit


@pytest.mark.django_db
def test_a_steady_client_at_98_percent_of_the_limit_is_never_refused() -> None:
    minute, limit, start = Minute(), 600, 1_800_000_000
    for number in range(10_000):
        at = start + int(number * 60 / (limit * 0.98))
        if number == 0 or at != minute.slot_at:
            assert minute.taken(at) + 10 <= limit, number  # ten fall into a second
        minute.add(at, 1) if number < 700 else _batch(minute, at)


def _batch(minute: Minute, at: int) -> None:
    minute.add(at, 1)


def rule(measure: str, amount: int) -> Rule:
    metric, tokens = ("spend", "both") if measure == "s" else ("tokens", {"o": "output", "b": "both"}[measure])
    return Rule(
        id=1, owner_id=0, scope="tenant", model_id=None, metric=metric, per="day", tokens=tokens, amount=amount,
        raised_amount=None, raised_until=None, credits=(), currency="USD", mode="enforce", hold="hard",
        on_shortage="fit", floor=1, fiscal_day=1,
    )  # fmt: skip


@given(
    st.sampled_from(["o", "b", "s"]),
    st.integers(0, 10**12),
    st.integers(0, 5_000),
    st.integers(1, 5_000),
    st.integers(1, 4),
    st.integers(0, 10**10),
)
def test_fit_finds_the_largest_cap_that_is_affordable(
    measure: str, available: int, input_tokens: int, cap: int, choices: int, price: int
) -> None:
    classes = dict.fromkeys([*CLASSES, "request"], price)
    rates = Rates(price_id=1, currency="USD", effective_from=datetime(2026, 1, 1, tzinfo=UTC), **classes)
    need = Need(input_tokens, cap * choices, input_tokens, cap * choices)

    def asked(output: int) -> int:
        if measure == "s":
            return hold(rates, input_tokens, output * choices)
        return output * choices + (input_tokens if measure == "b" else 0)

    found = affordable_output(rule(measure, available), available, need=need, rates=rates, choices=choices)
    if found:
        assert asked(found) <= available
    if found < cap:
        assert asked(found + 1) > available


@pytest.mark.parametrize(
    ("changes", "amount", "ask"),
    [
        ({"hold": "expected", "on_shortage": "refuse"}, 600, 600),  # 1,024 is a guess: the true use may fit
        ({"hold": "expected", "on_shortage": "refuse"}, 5_000, 1_124),
        ({"hold": "expected", "on_shortage": "refuse"}, 60, 101),  # its input alone does not
        ({"hold": "expected", "on_shortage": "refuse"}, 0, 101),
        ({"hold": "expected", "on_shortage": "fit"}, 600, 1_124),  # is lowered instead
        ({"hold": "hard", "on_shortage": "refuse"}, 600, 1_124),
    ],
)
def test_a_guess_alone_never_exceeds_a_limit(changes: dict[str, str], amount: int, ask: int) -> None:
    need = Need(100, 1_024, 100, 1_024)
    mine = replace(rule("b", amount), **changes)  # type: ignore[arg-type]
    (claim,) = claims_for([mine], need=need, rates=None, zone=ZoneInfo("UTC"), now=datetime(2026, 1, 1, tzinfo=UTC))
    assert claim.ask == ask


events = st.lists(
    st.tuples(st.integers(-70, 90), st.lists(st.tuples(st.integers(-70, 3), st.integers(-50, 50)), max_size=4)),
    max_size=15,
)


@pytest.mark.django_db
@slow
@given(events)
@example([(0, [(0, 5)]), (5, [(-5, -5)]), (-3, [(0, 7)]), (61, [(0, 1)]), (62, [(-61, 9), (1, 9)]), (20, [])])
def test_a_minute_that_is_moved_on_step_by_step_is_the_same_minute(
    turns: list[tuple[int, list[tuple[int, int]]]],
) -> None:
    """ledger_slots_move and ledger_slots_live, which do not add everything up: beside a dict that does.

    The clock goes on, stands, leaps and steps back; what is given back is negative; what comes late may be too late.
    """
    model, slots, slot_at, live, clock = dict[int, int](), None, None, None, 1_800_000_000
    for step, added in turns:
        clock += step
        newest = max(clock, slot_at or clock)
        with connection.cursor() as cursor:
            if slot_at is not None:
                cursor.execute("SELECT ledger_slots_live(%s::bigint[], %s, %s, %s)", [slots, slot_at, live, newest])
                assert cursor.fetchone()[0] == sum(a for s, a in model.items() if s > newest - 61)
            if not added:
                continue
            seconds, amounts = [clock + s for s, _ in added], [a for _, a in added]
            cursor.execute(
                "SELECT * FROM ledger_slots_move(%s::bigint[], %s::bigint, %s::bigint, %s::bigint[], "
                "%s::numeric[], %s)",
                [slots, slot_at, live, seconds, amounts, newest],
            )
            slots, slot_at, live = cursor.fetchone()
            for second, amount in zip(seconds, amounts, strict=True):
                if newest - 61 < second <= newest:
                    model[second] = model.get(second, 0) + amount
            model = {s: a for s, a in model.items() if s > newest - 61}
            assert (slot_at, live) == (newest, sum(model.values()))
            assert slots == [sum(a for s, a in model.items() if s % 61 == n) for n in range(61)]
