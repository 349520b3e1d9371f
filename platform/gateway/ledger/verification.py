"""Does every counter say what the ledger says? One statement a tenant: a snapshot each, none of them long.

Compared for every tenant and each of its keys, per currency: requests, tokens and charge with the records and
adjustments, held requests and held amounts with the open holds. Across all: as many records as settled
requests, and no hold of a process that has been dead for longer than two sweeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from django.db import connection

from gateway.ledger.models import DeadLetter
from gateway.ledger.sweeper import LEASE_SECONDS, LOOK_SECONDS
from tenants.models import Tenant

NAMES = ("requests", "tokens", "charge", "held_requests", "held")

_COMPARE = """
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
    SELECT c.* FROM ledger_counter c WHERE (c.scope = 'tenant' AND c.owner_id = %(tenant)s)
        OR (c.scope = 'key' AND c.owner_id IN (SELECT id FROM tenants_apikey WHERE tenant_id = %(tenant)s))
)
SELECT scope, owner_id, currency,
    ARRAY[c.requests, c.tokens, c.charge, c.held_requests, c.held]::numeric[],
    ARRAY[t.requests, t.tokens, t.charge, t.held_requests, t.held]::numeric[]
FROM counters c FULL JOIN truth t USING (scope, owner_id, currency)
"""

_OVERDUE = """
SELECT h.request_id, h.process_id FROM ledger_hold h LEFT JOIN ledger_process p ON p.id = h.process_id
WHERE h.started_at < now() - make_interval(secs => %(grace)s)
    AND (p.id IS NULL OR p.heartbeat_at < now() - make_interval(secs => %(grace)s))
ORDER BY h.request_id LIMIT 1000
"""


@dataclass(slots=True)
class Findings:
    """What was compared, and every difference in words."""

    tenants: int = 0
    counters: int = 0
    records: int = 0
    settled: int = 0
    open_holds: int = 0
    drift: list[str] = field(default_factory=list)


def verify() -> Findings:
    found = Findings()
    for tenant in Tenant.objects.order_by("pk").iterator():
        found.tenants += 1
        for scope, owner, currency, counter, truth in _compare(tenant):
            found.counters += 1
            counted, true = counter or [0] * 5, truth or [0] * 5
            if scope == "tenant":
                found.settled += int(counted[0] or 0)
                found.records += int(true[0] or 0)
                found.open_holds += int(true[3] or 0)
            for name, mine, right in zip(NAMES, counted, true, strict=True):
                if (mine or 0) != (right or 0):
                    found.drift.append(
                        f"{scope} {owner} of {tenant.slug} ({currency}): {name} is {mine or 0} in the counter, "
                        f"{right or 0} in the ledger"
                    )
    if found.records != found.settled:
        found.drift.append(f"{found.records} records, but {found.settled} settled requests")
    found.drift += list(_overdue())
    found.drift += [
        f"dead letter of {letter.request_id}: a settlement that is in no record ({letter.error[:200]})"
        for letter in DeadLetter.objects.filter(resolved_at=None).order_by("pk")[:1000]
    ]
    return found


def _compare(tenant: Tenant) -> list[tuple[str, int, str, list[int] | None, list[int] | None]]:
    with connection.cursor() as cursor:
        cursor.execute(_COMPARE, {"tenant": tenant.pk})
        return list(cursor.fetchall())


def _overdue() -> Iterator[str]:
    """Two sweeps: each a lease and a look, and one look to spare."""
    grace = 2 * (LEASE_SECONDS + LOOK_SECONDS) + LOOK_SECONDS
    with connection.cursor() as cursor:
        cursor.execute(_OVERDUE, {"grace": grace})
        for request_id, process_id in cursor.fetchall():
            yield f"hold of {request_id}: its process {process_id} is dead, and the sweeper has not taken it"
