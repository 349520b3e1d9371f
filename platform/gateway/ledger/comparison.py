"""What counters say beside what the ledger says: each comparison is one statement, so one snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import connection

NAMES = ("requests", "tokens", "charge", "held_requests", "held")

COMPARE = """
WITH facts AS (
    SELECT tenant_id, key_id, charge_currency AS currency, 1 AS requests,
        input_tokens + cached_input_tokens + cache_write_tokens + output_tokens + reasoning_tokens AS tokens,
        COALESCE(charge, 0) AS charge, 0 AS held_requests, 0 AS held
    FROM ledger_usagerecord WHERE tenant_id = %(tenant)s
    UNION ALL
    SELECT tenant_id, key_id, charge_currency, 0,
        input_tokens + cached_input_tokens + cache_write_tokens + output_tokens + reasoning_tokens, charge, 0, 0
    FROM ledger_adjustment WHERE tenant_id = %(tenant)s
    UNION ALL
    SELECT tenant_id, key_id, charge_currency, 0, 0, 0, 1, amount FROM ledger_hold WHERE tenant_id = %(tenant)s
), by_key AS (
    SELECT key_id, currency, sum(requests) AS requests, sum(tokens) AS tokens, sum(charge) AS charge,
        sum(held_requests) AS held_requests, sum(held) AS held
    FROM facts GROUP BY 1, 2
), truth AS (
    SELECT 'key' AS scope, key_id AS owner_id, currency, requests, tokens, charge, held_requests, held FROM by_key
    UNION ALL
    SELECT 'tenant', %(tenant)s, currency, sum(requests), sum(tokens), sum(charge), sum(held_requests), sum(held)
    FROM by_key GROUP BY currency
), counters AS (
    SELECT c.scope, c.owner_id, c.currency, sum(c.requests) AS requests, sum(c.tokens) AS tokens,
        sum(c.charge) AS charge, sum(c.held_requests) AS held_requests, sum(c.held) AS held
    FROM ledger_counter c WHERE (c.scope = 'tenant' AND c.owner_id = %(tenant)s)
        OR (c.scope = 'key' AND c.owner_id IN (SELECT id FROM tenants_apikey WHERE tenant_id = %(tenant)s))
    GROUP BY 1, 2, 3
)
SELECT scope, owner_id, currency,
    ARRAY[c.requests, c.tokens, c.charge, c.held_requests, c.held]::numeric[],
    ARRAY[t.requests, t.tokens, t.charge, t.held_requests, t.held]::numeric[]
FROM counters c FULL JOIN truth t USING (scope, owner_id, currency)
"""


@dataclass(frozen=True, slots=True)
class LimitState:
    """What a limit's counter says and what is right; of a sliding minute: what its live slots hold."""

    counter: int
    rule: int
    owner: int
    starts: datetime
    ends: datetime | None
    kind: str
    used: int
    held: int
    true_used: int
    true_held: int
    seconds: list[int] | None  # slots that differ
    amounts: list[int] | None

    def differences(self) -> Iterator[tuple[str, int, int]]:
        """(name, said, right)."""
        if self.kind == "m":
            if self.amounts:
                yield "slots", self.used, self.true_used
        elif self.used != self.true_used:
            yield "used", self.used, self.true_used
        if self.held != self.true_held:
            yield "held", self.held, self.true_held


def compare_limits(counters: Sequence[int]) -> list[LimitState]:
    """In one snapshot, without repairing; those that no longer have to be right are left out."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM ledger_compare_limits(%s)", [list(counters)])
        return [LimitState(*row) for row in cursor.fetchall()]


def watched_counters(after: int, most: int) -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM ledger_watched_counter WHERE shard = 0 AND id > %s ORDER BY id LIMIT %s", [after, most]
        )
        return [row[0] for row in cursor.fetchall()]
