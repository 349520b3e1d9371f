"""Warns when so much of a limit is used: once per threshold and window, `observe` limits too.

A look is one statement over the counters of open windows; what it finds and the notices of it are written in one
transaction, so that a look may come late, twice, or at the same time as another. `delivery` sends.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from gateway.limits.models import LimitRule
from gateway.limits.notices import Delivery, LimitWarning, WebhookEndpoint

# The amount as limits.facts.Rule.amount_at has it. At 100 per cent what running requests hold counts too: then
# nothing more is admitted. Nor is it when a remainder is too small for what clients send: a request that was refused
# in this window, and that the limit itself could hold, would still be refused. More than half must be taken, or one
# large request would use up the window's warning.
_LOOK = """
WITH state AS (
    SELECT l.rule_id, l.owner_id, l.kind, l.window_start, l.window_end, sum(l.held) AS held,
        CASE l.kind WHEN 'm' THEN sum(ledger_slots_sum(l.slots, l.slot_at,
                greatest(l.slot_at, floor(extract(epoch FROM now()))::bigint)))
            WHEN 'f' THEN sum(l.held) ELSE sum(l.used) END AS used
    FROM ledger_watched_counter l
    WHERE l.window_start <= now() AND (l.window_end IS NULL OR l.window_end > now())
    GROUP BY 1, 2, 3, 4, 5
), measured AS (
    SELECT s.rule_id, s.owner_id, COALESCE(r.tenant_id, k.tenant_id, NULLIF(s.owner_id, 0)) AS tenant_id, s.kind,
        CASE s.kind WHEN 'c' THEN s.window_start ELSE date_trunc('day', now(), 'UTC') END AS starts,
        CASE s.kind WHEN 'c' THEN s.window_end ELSE date_trunc('day', now(), 'UTC') + interval '1 day' END AS ends,
        s.used, CASE s.kind WHEN 'c' THEN s.held ELSE 0 END AS held, r.thresholds, r.mode,
        CASE WHEN r.raised_until > now() THEN r.raised_amount ELSE r.amount END + COALESCE((
            SELECT sum(c.amount - c.expired_amount) FROM limits_credit c WHERE c.rule_id = r.id
            AND (c.closed_at IS NOT NULL OR c.expires_at IS NULL OR c.expires_at > now())), 0) AS amount
    FROM state s JOIN limits_limitrule r ON r.id = s.rule_id LEFT JOIN tenants_apikey k ON k.id = r.key_id
)
INSERT INTO limits_limitwarning (rule_id, owner_id, tenant_id, window_start, window_end, threshold, "limit", amount,
    used, held, created_at)
SELECT m.rule_id, m.owner_id, m.tenant_id, m.starts, m.ends, t, '{}', m.amount, m.used, m.held, now()
FROM measured m, unnest(m.thresholds) AS t
WHERE m.amount > 0 AND (m.used * 100 >= t * m.amount OR (t = 100 AND m.kind = 'c' AND (
        m.used + m.held >= m.amount
        OR m.mode = 'enforce' AND (m.used + m.held) * 2 >= m.amount AND EXISTS (
            SELECT FROM limits_refusal f, generate_series(1, array_length(f.decided, 1)) AS n
            WHERE f.rule_id = m.rule_id AND f.at >= m.starts AND f.reason = '' AND f.lowered_to IS NULL
                AND f.tenant_id BETWEEN m.owner_id AND COALESCE(nullif(m.owner_id, 0), 9223372036854775807)
                AND f.decided[n][1] = m.rule_id AND f.decided[n][9] <= m.amount
                AND m.used + m.held + f.decided[n][9] > m.amount))))
    AND NOT EXISTS (SELECT FROM limits_limitwarning w WHERE w.rule_id = m.rule_id AND w.owner_id = m.owner_id
        AND w.window_start = m.starts AND w.threshold = t)
ORDER BY 1, 2, 4, 6
ON CONFLICT DO NOTHING RETURNING id
"""


def look() -> int:
    """Write what thresholds were reached since the last look, and notices of the highest; returns how many."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(_LOOK)
            ids = [row[0] for row in cursor.fetchall()]
        if not ids:
            return 0
        warnings = list(LimitWarning.objects.filter(pk__in=ids).select_related("tenant").order_by("threshold"))
        rules = LimitRule.objects.select_related("plan", "tenant", "key", "model").in_bulk(
            {warning.rule_id for warning in warnings}
        )
        for warning in warnings:
            if warning.rule_id in rules:
                warning.limit = _facts(rules[warning.rule_id])
        LimitWarning.objects.bulk_update(warnings, ["limit"])
        highest = {(w.rule_id, w.owner_id, w.window_start): w for w in warnings}  # the last of each: the highest
        Delivery.objects.bulk_create(
            [notice for warning in highest.values() for notice in _notices(warning)], ignore_conflicts=True
        )
    return len(ids)


def _facts(rule: LimitRule) -> dict[str, Any]:
    return {
        "subject": rule.subject,
        "metric": rule.metric,
        "per": rule.per,
        "tokens": rule.tokens,
        "currency": rule.currency,
        "mode": rule.mode,
    }


def _notices(warning: LimitWarning) -> list[Delivery]:
    """To whom: the tenant's billing contact, ours, and the webhooks of both."""
    now = timezone.now()
    addresses = []
    if settings.EMAIL_HOST:
        contact = [warning.tenant.billing_contact] if warning.tenant is not None else []
        addresses = [address for address in dict.fromkeys([*contact, *settings.WARNING_EMAILS]) if address]
    endpoints = WebhookEndpoint.objects.filter(enabled=True, tenant=None)
    if warning.tenant_id is not None:
        endpoints |= WebhookEndpoint.objects.filter(enabled=True, tenant_id=warning.tenant_id)
    return [
        *(Delivery(warning=warning, channel="email", address=address, next_at=now) for address in addresses),
        *(Delivery(warning=warning, channel="webhook", address=e.url, endpoint=e, next_at=now) for e in endpoints),
    ]
