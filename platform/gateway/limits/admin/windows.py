"""What a rule's open windows have used, for a list: one subquery a row, by the counters' index."""

from __future__ import annotations

from typing import Any

from django.db.models import BigIntegerField, Count, F, Func, JSONField, Max, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce, JSONObject, Now

from gateway.limits.models import LimitCounter, LimitRule


class SlotsSum(Func):
    """What a sliding minute holds now (`ledger_slots_sum`)."""

    function = "ledger_slots_sum"
    template = "%(function)s(slots, slot_at, greatest(slot_at, floor(extract(epoch FROM now()))::bigint))"
    output_field = BigIntegerField()


def with_use(rules: QuerySet[LimitRule]) -> QuerySet[Any]:
    """Each with `use`: {used, held, most, rows} of the windows that hold this moment; None: nothing counted yet.

    `most` is the largest of one owner: of a plan's rule each tenant has a counter of its own.
    """
    counters = LimitCounter.objects.filter(rule_id=OuterRef("pk"), window_start__lte=Now())
    open_now = counters.filter(Q(window_end=None) | Q(window_end__gt=Now())).order_by().values("rule_id")
    taken = Coalesce(SlotsSum(), 0) + F("used") + F("held")
    sums = open_now.annotate(
        use=JSONObject(
            used=Sum(Coalesce(SlotsSum(), 0) + F("used")),
            held=Sum("held"),
            most=Max(taken),
            rows=Count("id"),
        )
    )
    return rules.annotate(use=Subquery(sums.values("use"), output_field=JSONField()))
