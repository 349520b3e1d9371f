"""What people are shown of a deployment's health: one word for its state, and lists with the sick ones first."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.db.models import Case, IntegerField, OuterRef, Q, QuerySet, Subquery, Sum, Value, When
from django.utils import timezone

from gateway.failover.models import Circuit, DeploymentHealth, HealthEvent, RecentResults

State = HealthEvent.State
FORCED = {Circuit.Forced.OPEN: State.OUT, Circuit.Forced.CLOSED: State.ALWAYS}
RECENT = timedelta(seconds=45)  # a process says every 5 s what it counted in the last 30
SERVED = Q(enabled=True, provider__enabled=True, model__enabled=True)


def state_of(circuit: Circuit | None, now: datetime | None = None) -> HealthEvent.State:
    """What the request path makes of it now; without a row nothing was ever wrong."""
    if circuit is None:
        return State.CLOSED
    if circuit.forced:
        return FORCED[Circuit.Forced(circuit.forced)]
    now = now or timezone.now()
    resting = circuit.resting_until is not None and now < circuit.resting_until
    if circuit.state == Circuit.State.CLOSED:
        return State.RESTING if resting else State.CLOSED
    waiting = circuit.open_until is not None and now < circuit.open_until
    return State.OPEN if waiting or resting else State.HALF_OPEN


def in_state(state: str, now: datetime) -> Q:
    """Deployments that `state_of` gives this state."""
    resting = Q(circuit__resting_until__gt=now)
    rested = Q(circuit__resting_until=None) | Q(circuit__resting_until__lte=now)
    waiting = Q(circuit__open_until__gt=now)
    opened = Q(circuit__forced="", circuit__state=Circuit.State.OPEN)
    closed = Q(circuit__forced="", circuit__state=Circuit.State.CLOSED)
    return {
        State.OUT: Q(circuit__forced=Circuit.Forced.OPEN),
        State.ALWAYS: Q(circuit__forced=Circuit.Forced.CLOSED),
        State.OPEN: opened & (waiting | resting),
        State.HALF_OPEN: opened & ~waiting & rested,
        State.RESTING: closed & resting,
        State.CLOSED: Q(circuit=None) | (closed & rested),
    }[State(state)]


def with_health(queryset: QuerySet[Any], now: datetime | None = None) -> QuerySet[Any]:
    """With `rank` (the sickest first), and what failed lately in all processes together: `good` and `bad`."""
    now = now or timezone.now()
    order = [State.OUT, State.OPEN, State.HALF_OPEN, State.RESTING, State.ALWAYS]
    ranks = [When(in_state(state, now), then=Value(rank)) for rank, state in enumerate(order)]
    counted = RecentResults.objects.filter(deployment=OuterRef("pk"), at__gt=now - RECENT).order_by()
    sums = {
        name: Subquery(counted.values("deployment").annotate(total=Sum(name)).values("total"))
        for name in ("good", "bad")
    }
    unserved = When(~SERVED, then=Value(len(order) + 1))
    rank = Case(unserved, *ranks, default=Value(len(order)), output_field=IntegerField())
    annotated: QuerySet[Any] = queryset.annotate(rank=rank, **sums)
    return annotated


def out_of_rotation(now: datetime | None = None) -> QuerySet[DeploymentHealth]:
    """Those that would serve requests and do not, by themselves or by a person."""
    now = now or timezone.now()
    found = in_state(State.OUT, now) | in_state(State.OPEN, now) | in_state(State.HALF_OPEN, now)
    related = DeploymentHealth.objects.select_related("model", "provider", "circuit").defer("provider__credential")
    return related.filter(SERVED & found).order_by("circuit__since")


def next_probe(circuit: Circuit | None, now: datetime | None = None) -> str:
    """When it is tried again, in words; empty if nothing keeps it from being called."""
    now = now or timezone.now()
    state = state_of(circuit, now)
    if circuit is None or state in (State.CLOSED, State.ALWAYS):
        return ""
    if state == State.OUT:
        return "when it is put back"
    if state == State.HALF_OPEN:
        under_way = circuit.probe_until is not None and now < circuit.probe_until
        return "under way" if under_way else "the next request"
    until = max(at for at in (circuit.open_until, circuit.resting_until) if at is not None)
    return f"in {round((until - now).total_seconds())} s"
