"""How much of each limit is used now: for who asks, not for decisions (the desk's SQL makes those, with rows locked).

A window that no request has met yet has no counter; it is worked out of the ledger, as the desk would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from django.db import connection

from gateway.limits.claims import make_claim
from gateway.limits.facts import Rule
from gateway.limits.rate_headers import Standing

# A window may have several rows (ledger migrations, 0010): their sum counts.
_READ = """
WITH clock AS (SELECT i, floor(extract(epoch FROM i))::bigint AS at FROM clock_timestamp() i),
windows AS (
    SELECT c.rule, c.owner, c.kind = ascii('m') AS minute,
        CASE WHEN c.ends >= 0 THEN to_timestamp(c.ends) END AS ends, COALESCE(l.used, t.used) AS used,
        COALESCE(l.held, t.held) AS held,
        COALESCE(l.live, ledger_slots_sum(t.slots, clock.at, clock.at)) AS live, clock.i
    FROM clock, ledger_claim_rows(%s::bigint[]) c
    LEFT JOIN LATERAL (
        SELECT sum(k.used) AS used, sum(k.held) AS held, sum(ledger_slots_live(k.slots, k.slot_at, k.live,
            greatest(k.slot_at, floor(extract(epoch FROM clock_timestamp()))::bigint))) AS live, count(*) AS rows
        FROM limits_limitcounter k
        WHERE k.rule_id = c.rule AND k.owner_id = c.owner AND k.window_start = to_timestamp(c.starts)) l ON true
    LEFT JOIN LATERAL ledger_limit_truth(c.rule, c.owner, to_timestamp(c.starts),
        CASE WHEN c.ends >= 0 THEN to_timestamp(c.ends) END, chr(c.kind::integer),
        floor(extract(epoch FROM clock_timestamp()))::bigint) t ON l.rows = 0
)
SELECT rule, i, CASE WHEN minute THEN live ELSE used END, held, CASE WHEN minute THEN live ELSE used + held END,
    CASE WHEN minute THEN ledger_minute_wait(rule, owner, nullif(live, 0), live, i)
        ELSE ceil(extract(epoch FROM ends - i) * 1000) END
FROM windows
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
    claims = [[*make_claim(rule, zone, now, rule.amount_at(now)), 0] for rule in rules]
    with connection.cursor() as cursor:
        cursor.execute(_READ, [claims])
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
