"""When a tenant may change its time zone or its currency.

Both decide what a window is. In the middle of one that has been used, a change is refused until the window is over,
by name and date. A spend limit of the tenant's own would never count in another currency, so it has to go first.
Windows of one minute and requests in flight know no zone and no currency.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from django.core.exceptions import ValidationError
from django.db.models import Q
from django.utils import timezone

from gateway.limits.facts import facts_of
from gateway.limits.models import LimitCounter, LimitRule
from gateway.limits.standings import read_windows
from gateway.limits.wording import kind_of
from tenants.models import Tenant

CALENDAR = ("day", "week", "month", "fiscal_month")


def check_move(stored: Tenant, new: Tenant, now: datetime | None = None) -> None:
    """Raises ValidationError by field, saying which window stands against it and until when."""
    now = now or timezone.now()
    found: dict[str, str] = {}
    if stored.timezone != new.timezone and _valid(new, "timezone"):
        which = Q(per__in=CALENDAR)
        used = list(_used(stored, which, now))
        if used:
            found["timezone"] = _text("time zone", [*used, *_uncounted(stored, which, used, now)], stored)
    if stored.currency != new.currency and _valid(new, "currency"):
        own = LimitRule.objects.filter(Q(tenant=stored) | Q(key__tenant=stored), metric="spend", enabled=True)
        used = list(_used(stored, Q(metric="spend"), now))
        if own.exists():
            found["currency"] = _dead(list(own.select_related("tenant", "key", "model")), new)
        elif used:
            found["currency"] = _text("currency", [*used, *_uncounted(stored, Q(metric="spend"), used, now)], stored)
    if found:
        raise ValidationError(found)


def _used(tenant: Tenant, which: Q, now: datetime) -> Iterator[tuple[LimitRule, datetime | None]]:
    """The tenant's limits, its keys' and its plan's whose open window has been used, and when it ends."""
    rules = LimitRule.objects.for_tenant(tenant).filter(which, enabled=True)
    by_id = {rule.pk: rule for rule in rules.select_related("plan", "tenant", "key", "model")}
    counters = LimitCounter.objects.filter(rule_id__in=by_id, owner_id__in=(0, tenant.pk), window_start__lte=now)
    counters = counters.filter(Q(window_end=None) | Q(window_end__gt=now))
    for counter in counters.exclude(used=0, held=0).order_by("window_end"):
        rule = by_id[counter.rule_id]
        if rule.plan_id is None or counter.owner_id == tenant.pk:
            yield rule, counter.window_end


def _uncounted(
    tenant: Tenant, which: Q, used: list[tuple[LimitRule, datetime | None]], now: datetime
) -> Iterator[tuple[LimitRule, datetime | None]]:
    """Limits that no request has met yet in a window that the ledger has use of: the next one opens their counter."""
    rules = LimitRule.objects.for_tenant(tenant).filter(which, per__in=CALENDAR, enabled=True)
    rules = rules.exclude(pk__in=[rule.pk for rule, _ in used]).select_related("plan", "tenant", "key", "model")
    by_id = {rule.pk: rule for rule in rules.prefetch_related("credits")}
    for window in read_windows(facts_of(by_id.values(), tenant.pk), tenant.zone):
        if window.taken:
            yield by_id[window.rule.id], window.rule.window_at(now, tenant.zone).end


def _valid(tenant: Tenant, name: str) -> bool:
    """What is no time zone or currency is refused for that alone."""
    try:
        tenant._meta.get_field(name).run_validators(getattr(tenant, name))  # type: ignore[union-attr]
    except ValidationError:
        return False
    return True


def _dead(own: list[LimitRule], new: Tenant) -> str:
    names = ", ".join(f"{kind_of(rule)} of {rule.subject}" for rule in own[:3]) + (" and more" if own[3:] else "")
    return (
        f"Limits in {own[0].currency} would never count again: {names}. Disable or remove them first, then change "
        f"the currency, then set them in {new.currency}. In a file: state the new currency and, beside it, the whole "
        "list of limits of the tenant and of these keys; limits with credit are disabled in a run before."
    )


def _text(what: str, used: list[tuple[LimitRule, datetime | None]], tenant: Tenant) -> str:
    rule, end = max(used, key=lambda pair: (pair[1] is None, pair[1]))
    limit = f"the limit of {kind_of(rule)} of {rule.subject}"
    if end is None:
        return f"The {what} cannot change while {limit} is in use, which has no end. Disable that limit first."
    until = f"{end.astimezone(tenant.zone):%Y-%m-%d %H:%M} ({tenant.timezone})"
    return (
        f"The {what} cannot change in the middle of a window that has been used: {limit} runs until {until}, so it "
        "is possible then at the earliest. To change it now, disable the limit, change it, and enable the limit "
        "again: it then counts the new window from the ledger."
    )
