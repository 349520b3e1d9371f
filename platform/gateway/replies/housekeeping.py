"""Kept answers are deleted on time, in short transactions. Nothing depends on it: a look-up ignores expired ones."""

from __future__ import annotations

from django.conf import settings
from django.db import connection

from gateway.replies import claims

AT_ONCE = 500  # rows in one statement
_EXPIRED = """
DELETE FROM replies_keptreply WHERE id IN (
    SELECT id FROM replies_keptreply WHERE expires_at <= now() ORDER BY expires_at LIMIT %(most)s)
"""
# Nothing is kept any more: what was goes too.
_ANY = "DELETE FROM replies_keptreply WHERE id IN (SELECT id FROM replies_keptreply LIMIT %(most)s)"
_OVERFULL = "SELECT tenant_id FROM replies_keptreply GROUP BY tenant_id HAVING count(*) > %(most)s"


def tidy() -> int:
    """Delete what has expired, and each tenant's oldest beyond its bound; returns how many."""
    total: int = 0
    with connection.cursor() as cursor:
        while True:
            cursor.execute(_EXPIRED if settings.IDEMPOTENCY_HOURS else _ANY, {"most": AT_ONCE})
            total += cursor.rowcount
            if cursor.rowcount < AT_ONCE:
                break
        cursor.execute(_OVERFULL, {"most": settings.IDEMPOTENCY_MAX_KEPT})
        overfull = [tenant_id for (tenant_id,) in cursor.fetchall()]
    for tenant_id in overfull:
        while trimmed := claims.trim(tenant_id):
            total += trimmed
    return total
