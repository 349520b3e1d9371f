"""What a person may do to a deployment's health. Every process obeys within a second; each switch is in the history.

Raises ValidationError if there is nothing to switch, so that a page can say so.
"""

from __future__ import annotations

from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from gateway.catalogue.models import Deployment
from gateway.failover.models import Circuit, HealthEvent
from gateway.failover.standings import state_of

_FORGOTTEN = {
    "state": Circuit.State.CLOSED,
    "reason": "",
    "openings": 0,
    "open_until": None,
    "probe_by": None,
    "probe_until": None,
    "resting_until": None,
    "probe_failures": 0,
}


def take_out(*, deployment: Deployment, by: AbstractBaseUser, reason: str) -> Circuit:
    """No request goes to it until it is put back; those under way end as they would."""
    return _force(deployment, Circuit.Forced.OPEN, HealthEvent.State.OUT, by, reason)


def always_try(*, deployment: Deployment, by: AbstractBaseUser, reason: str) -> Circuit:
    """It is called whatever its answers are like, until it is put back."""
    return _force(deployment, Circuit.Forced.CLOSED, HealthEvent.State.ALWAYS, by, reason)


def put_back(*, deployment: Deployment, by: AbstractBaseUser, reason: str = "") -> Circuit:
    """Its answers decide again; what was counted before is forgotten."""
    with transaction.atomic():
        circuit = _locked(deployment)
        if not circuit.forced:
            raise ValidationError(f"{deployment} is switched by nobody.")
        return _reset(circuit, by, reason)


def forget_failures(*, deployment: Deployment, by: AbstractBaseUser, reason: str = "") -> Circuit:
    """Called again at once, as if nothing had failed. A switch stays."""
    with transaction.atomic():
        circuit = _locked(deployment)
        if circuit.forced:
            raise ValidationError(f"{deployment} was switched by {circuit.forced_by}: put it back instead.")
        if state_of(circuit) == HealthEvent.State.CLOSED:
            raise ValidationError(f"{deployment} is in rotation already.")
        return _reset(circuit, by, reason)


def _force(
    deployment: Deployment, forced: Circuit.Forced, after: HealthEvent.State, by: AbstractBaseUser, reason: str
) -> Circuit:
    with transaction.atomic():
        circuit = _locked(deployment)
        if circuit.forced == forced:
            raise ValidationError(f"{deployment} is {forced.label} already, by {circuit.forced_by}.")
        _record(circuit, after, by, reason)
        now = timezone.now()
        _write(
            circuit,
            **_FORGOTTEN,
            forced=forced,
            forced_by=by.get_username()[:150],
            forced_reason=reason[:200],
            forced_at=now,
            since=now,
        )
    return circuit


def _reset(circuit: Circuit, by: AbstractBaseUser, reason: str) -> Circuit:
    _record(circuit, HealthEvent.State.CLOSED, by, reason)
    _write(
        circuit,
        **_FORGOTTEN,
        forced=Circuit.Forced.NO,
        forced_by="",
        forced_reason="",
        forced_at=None,
        since=timezone.now(),
    )
    return circuit


def _locked(deployment: Deployment) -> Circuit:
    Circuit.objects.bulk_create([Circuit(deployment_id=deployment.pk)], ignore_conflicts=True)
    return Circuit.objects.select_for_update().get(pk=deployment.pk)


def _record(circuit: Circuit, after: HealthEvent.State, by: AbstractBaseUser, reason: str) -> None:
    HealthEvent.objects.create(
        deployment_id=circuit.pk,
        before=state_of(circuit),
        after=after,
        reason=reason[:200],
        person=by.get_username()[:150],
    )


def _write(circuit: Circuit, **values: object) -> None:
    for name, value in values.items():
        setattr(circuit, name, value)
    circuit.updated_at = timezone.now()
    circuit.save(update_fields=[*values, "updated_at"])
