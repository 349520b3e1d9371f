"""How much of each limit is used now: for who asks, not for decisions (the desk's SQL makes those, with rows locked).

A window that no request has met yet has no counter; it is worked out of the ledger, as the desk would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import orjson
from django.db import connection

from gateway.limits.claims import empty_claim
from gateway.limits.facts import Rule
from gateway.limits.rate_headers import Standing

_READ = """
WITH clock AS (SELECT i, floor(extract(epoch FROM i))::bigint AS at FROM clock_timestamp() i),
windows AS (
    SELECT c.rule, c.kind, c.ends, COALESCE(l.used, t.used) AS used, COALESCE(l.held, t.held) AS held,
        COALESCE(l.slots, t.slots) AS slots, COALESCE(l.slot_at, clock.at) AS slot_at, clock.i, clock.at
    FROM clock, jsonb_populate_recordset(NULL::ledger_claim, %s::jsonb) c
    LEFT JOIN limits_limitcounter l
        ON l.rule_id = c.rule AND l.owner_id = c.owner AND l.window_start = c.starts
    LEFT JOIN LATERAL ledger_limit_truth(c.rule, c.owner, c.starts, c.ends, c.kind, clock.at) t ON l.id IS NULL
), taken AS (
    SELECT *, CASE WHEN kind = 'm' THEN ledger_slots_sum(slots, slot_at, greatest(slot_at, at)) ELSE used + held END
        AS taken
    FROM windows
)
SELECT rule, i, CASE WHEN kind = 'm' THEN taken ELSE used END, held, taken,
    CASE WHEN kind = 'm' THEN ledger_slots_wait(slots, slot_at, nullif(taken, 0), i)
        ELSE ceil(extract(epoch FROM ends - i) * 1000) END
FROM taken
"""


@dataclass(frozen=True, slots=True)
class Window:
    """One limit's window as it stands. Spend in nano-units. Of a minute, what runs is in `used`."""

    rule: Rule
    amount: int
    used: int
    held: int
    taken: int
    resets_at: datetime | None  # until when something of it is used; None: nothing is, or it never resets
    reset_ms: int

    @property
    def left(self) -> int:
        return max(0, self.amount - self.taken)

    @property
    def standing(self) -> Standing:
        return Standing(self.rule, self.amount, self.taken, self.reset_ms)


def read_windows(rules: Sequence[Rule], zone: ZoneInfo) -> list[Window]:
    """In the rules' order. One query."""
    now = datetime.now(UTC)
    claims = [empty_claim(rule, zone, now) for rule in rules]
    with connection.cursor() as cursor:
        cursor.execute(_READ, [orjson.dumps(claims).decode()])
        rows = {row[0]: row[1:] for row in cursor.fetchall()}
    return [_window(rule, now, *rows[rule.id]) for rule in rules if rule.id in rows]


def _window(rule: Rule, now: datetime, at: datetime, used: int, held: int, taken: int, reset: int | None) -> Window:
    milliseconds = max(0, int(reset or 0))
    return Window(
        rule=rule,
        amount=rule.amount_at(now),
        used=int(used),
        held=int(held),
        taken=int(taken),
        resets_at=None if reset is None else at + timedelta(milliseconds=milliseconds),
        reset_ms=milliseconds,
    )
