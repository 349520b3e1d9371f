"""`APIKey.last_used_at`, brought up now and then from the counters: no request waits for it.

Plain SQL, since a save would write history; the version trigger leaves this column out, so no process
reloads a key because it was used.
"""

from __future__ import annotations

from django.db import connection

# Rows that somebody holds are left for the next run, and a busy key is written at most once a minute.
_UPDATE = """
WITH seen AS (
    SELECT owner_id, max(last_at) AS last_at FROM ledger_counter
     WHERE scope = 'key' AND last_at IS NOT NULL GROUP BY owner_id
), due AS (
    SELECT k.id, seen.last_at FROM tenants_apikey k JOIN seen ON seen.owner_id = k.id
     WHERE k.last_used_at IS NULL OR k.last_used_at < seen.last_at - interval '1 minute'
     LIMIT %(rows)s FOR NO KEY UPDATE OF k SKIP LOCKED
)
UPDATE tenants_apikey k SET last_used_at = due.last_at FROM due WHERE k.id = due.id"""


def update_last_used(*, rows: int = 5_000, rounds: int = 20) -> int:
    """Bring every key's last use up to date, a few thousand a statement. Returns how many rows changed."""
    changed = 0
    for _ in range(rounds):
        with connection.cursor() as cursor:
            cursor.execute(_UPDATE, {"rows": rows})
            changed += cursor.rowcount
            if cursor.rowcount < rows:
                break
    return changed
