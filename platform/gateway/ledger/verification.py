"""Does every counter say what the ledger says? One statement a tenant: a snapshot each, none of them long.

Compared for every tenant and each of its keys, per currency: requests, tokens and charge with the records and
adjustments, held requests and held amounts with the open holds. Across all: as many records as settled
requests, and no hold of a process that has been dead for longer than two sweeps. And every limit's counter whose
window is open, or closed in the last two days: used and held. This only says; `drift.py` repairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from django.db import connection

from gateway.ledger.comparison import COMPARE, NAMES, compare_limits, watched_counters
from gateway.ledger.models import DeadLetter
from gateway.ledger.sweeper import LEASE_SECONDS, LOOK_SECONDS
from tenants.models import Tenant

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
    limits: int = 0
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
    found.drift += list(_limits(found))
    found.drift += list(_overdue())
    found.drift += [
        f"dead letter of {letter.request_id}: a settlement that is in no record ({letter.error[:200]})"
        for letter in DeadLetter.objects.filter(resolved_at=None).order_by("pk")[:1000]
    ]
    return found


def _compare(tenant: Tenant) -> list[tuple[str, int, str, list[int] | None, list[int] | None]]:
    with connection.cursor() as cursor:
        cursor.execute(COMPARE, {"tenant": tenant.pk})
        return list(cursor.fetchall())


def _limits(found: Findings) -> Iterator[str]:
    """One statement a counter: each is a snapshot of its own, and a large window may take its time."""
    position = 0
    while ids := watched_counters(position, 1):
        position = ids[-1]
        for state in compare_limits(ids):
            found.limits += 1
            owner = f" of tenant {state.owner}" if state.owner else ""
            for name, said, right in state.differences():
                yield (
                    f"limit {state.rule}{owner}, window from {state.starts:%Y-%m-%d %H:%M} UTC: {name} is {said} in "
                    f"the counter, {right} in the ledger"
                )


def _overdue() -> Iterator[str]:
    """Two sweeps: each a lease and a look, and one look to spare."""
    grace = 2 * (LEASE_SECONDS + LOOK_SECONDS) + LOOK_SECONDS
    with connection.cursor() as cursor:
        cursor.execute(_OVERDUE, {"grace": grace})
        for request_id, process_id in cursor.fetchall():
            yield f"hold of {request_id}: its process {process_id} is dead, and the sweeper has not taken it"
