"""What a rule's open windows have used, for a list: one subquery a row, by the counters' index."""

from __future__ import annotations

from typing import Any

from django.db.models import JSONField, QuerySet
from django.db.models.expressions import RawSQL

from gateway.limits.models import LimitRule

# A counter may have several rows, one a process: their sum is what one owner has used.
_USE = """(
    SELECT jsonb_build_object('used', sum(o.used), 'held', sum(o.held), 'most', max(o.used + o.held),
        'owners', count(*))
    FROM (
        SELECT sum(l.held) AS held, sum(l.used + COALESCE(ledger_slots_sum(l.slots, l.slot_at,
            greatest(l.slot_at, floor(extract(epoch FROM now()))::bigint)), 0)) AS used
        FROM limits_limitcounter l WHERE l.rule_id = limits_limitrule.id
            AND l.window_start <= now() AND (l.window_end IS NULL OR l.window_end > now())
        GROUP BY l.owner_id) o
    HAVING count(*) > 0)"""


def with_use(rules: QuerySet[LimitRule]) -> QuerySet[Any]:
    """Each with `use`: {used, held, most, owners} of the windows that hold this moment.

    None: there is no counter yet, whatever the ledger has.
    `most` is the largest of one owner: of a plan's rule each tenant has a counter of its own.
    """
    return rules.annotate(use=RawSQL(_USE, [], output_field=JSONField()))
