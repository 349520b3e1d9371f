"""What makes limits quicker and tidier, and nothing depends on: a window is a function of the clock, and the desk
makes the counters that it misses. So all of this may come late, or never for a while.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from django.db import connection
from django.utils import timezone

from gateway.limits.models import Credit, LimitCounter, LimitRule
from gateway.limits.windows import window_at
from tenants.models import Tenant

AHEAD = timedelta(minutes=15)
KEPT = timedelta(days=400)
AT_ONCE = 5_000  # rows in one statement


def open_windows(*, now: datetime | None = None) -> int:
    """Make the counters of windows that begin soon, for who uses the present one; returns how many.

    They begin at nothing: whatever is admitted in them knows the rule.
    """
    now = now or timezone.now()
    ending = LimitCounter.objects.filter(window_end__gt=now, window_end__lte=now + AHEAD)[:AT_ONCE]
    pairs = {(c.rule_id, c.owner_id): c.window_end for c in ending if c.window_end is not None}
    rules = LimitRule.objects.filter(enabled=True).select_related("tenant", "key__tenant")
    known = rules.in_bulk({rule_id for rule_id, _ in pairs})
    zones = dict(Tenant.objects.filter(pk__in={owner for _, owner in pairs}).values_list("pk", "timezone"))
    fresh = []
    for (rule_id, owner), end in sorted(pairs.items()):
        rule = known.get(rule_id)
        if rule is None:
            continue
        tenant = rule.tenant or (rule.key.tenant if rule.key is not None else None)
        zone = tenant.zone if tenant is not None else ZoneInfo(zones.get(owner, "UTC"))
        window = window_at(rule.per, end, zone, fiscal_day=rule.fiscal_day)
        if window.start > now:
            fresh.append(
                LimitCounter(rule_id=rule_id, owner_id=owner, window_start=window.start, window_end=window.end)
            )
    LimitCounter.objects.bulk_create(fresh, ignore_conflicts=True)
    return len(fresh)


def close_credits(*, now: datetime | None = None) -> int:
    """Credits that have expired: what of them was unused is gone (`ledger_close_credits`); returns how many.

    The desk does the same when a request would be refused for it.
    """
    due = Credit.objects.filter(closed_at=None, expires_at__lte=now or timezone.now())
    closed = 0
    for rule_id in sorted(set(due.values_list("rule_id", flat=True))):
        with connection.cursor() as cursor:
            cursor.execute("SELECT ledger_close_credits(%s)", [rule_id])
            closed += cursor.fetchone()[0]
    return closed


def tidy(*, now: datetime | None = None) -> int:
    """Delete counters and warnings of windows that ended long ago; returns how many. In short transactions."""
    before = (now or timezone.now()) - KEPT
    return sum(
        _delete(f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE {old} LIMIT {AT_ONCE})", before)
        for table, old in (
            ("limits_limitcounter", "window_end < %s"),
            ("limits_delivery", "created_at < %s"),
            ("limits_limitwarning", "created_at < %s"),
        )
    )


def _delete(statement: str, before: datetime) -> int:
    total = 0
    with connection.cursor() as cursor:
        while True:
            cursor.execute(statement, [before])
            count: int = cursor.rowcount
            total += count
            if count < AT_ONCE:
                return total
