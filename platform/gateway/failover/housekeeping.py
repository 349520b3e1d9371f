"""What is deleted: history that is old or too long, counts of processes and rows of deployments that are gone."""

from __future__ import annotations

from django.db import connection

KEPT_DAYS = 90
KEPT_EACH = 5_000  # events of one deployment
AT_ONCE = 5_000  # rows in one transaction

_STATEMENTS = (
    f"""DELETE FROM failover_healthevent WHERE id IN (
        SELECT id FROM failover_healthevent WHERE at < now() - interval '{KEPT_DAYS} days' LIMIT {AT_ONCE})""",
    f"""DELETE FROM failover_healthevent WHERE id IN (
        SELECT old.id FROM (SELECT deployment_id FROM failover_healthevent
            GROUP BY deployment_id HAVING count(*) > {KEPT_EACH}) long
        CROSS JOIN LATERAL (SELECT id FROM failover_healthevent e WHERE e.deployment_id = long.deployment_id
            ORDER BY id DESC OFFSET {KEPT_EACH}) old LIMIT {AT_ONCE})""",
    f"""DELETE FROM failover_recentresults WHERE id IN (
        SELECT id FROM failover_recentresults WHERE at < now() - interval '1 hour' LIMIT {AT_ONCE})""",
    f"""DELETE FROM failover_circuit WHERE deployment_id IN (
        SELECT deployment_id FROM failover_circuit c
        WHERE NOT EXISTS (SELECT FROM catalogue_deployment d WHERE d.id = c.deployment_id) LIMIT {AT_ONCE})""",
)


def tidy() -> int:
    """Returns how many rows went. In short transactions."""
    total = 0
    with connection.cursor() as cursor:
        for statement in _STATEMENTS:
            while True:
                cursor.execute(statement)
                count: int = cursor.rowcount
                total += count
                if count < AT_ONCE:
                    break
    return total
