"""After everything has stopped: are the books in order?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Found:
    text: str
    records: int
    completed: int
    failures: list[str] = field(default_factory=list)


def check() -> Found:
    """No drift, and no hold left."""
    from gateway.ledger.models import UsageRecord
    from gateway.ledger.verification import verify

    found = verify()
    completed = UsageRecord.objects.filter(status="completed").count()
    failures = list(found.drift)
    if found.open_holds:
        failures.append(f"{found.open_holds} holds are open although everything has stopped")
    text = (
        f"books: {found.records} records ({completed} completed), {found.counters} counters and {found.limits} "
        f"limits' compared with them, drift: {len(found.drift)}"
    )
    return Found(text, found.records, completed, failures)


def shards() -> Iterator[str]:
    """How many counters were split over processes, if any can be."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM information_schema.columns"
            " WHERE table_name = 'limits_limitcounter' AND column_name = 'shard'"
        )
        if not cursor.fetchone()[0]:
            return
        cursor.execute("SELECT count(*), count(*) FILTER (WHERE shard <> 0) FROM limits_limitcounter")
        rows, split = cursor.fetchone()
    yield f"limit counters: {rows} rows, {split} of them shards"
