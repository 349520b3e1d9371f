"""What is written of a breaker, and what of that is news."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

from django.db.models import F

from gateway.catalogue.models import Deployment
from gateway.failover import circuits
from gateway.failover.circuits import Author
from gateway.failover.models import Circuit, HealthEvent

ONE, OTHER = Author(uuid4(), "one"), Author(uuid4(), "other")


def history() -> list[tuple[str, str]]:
    return list(HealthEvent.objects.order_by("id").values_list("before", "after"))


def test_many_who_are_told_to_wait_at_once_are_one_line_of_history(deployment: Deployment) -> None:
    for number in range(20):
        circuits.rest((ONE, OTHER)[number % 2], deployment.pk, seconds=30 + number, told=True)
    assert history() == [("closed", "resting")]
    Circuit.objects.update(resting_until=F("resting_until") - timedelta(minutes=1))
    circuits.rest(ONE, deployment.pk, seconds=30, told=True)
    assert history() == [("closed", "resting")] * 2


def test_an_open_one_that_asks_for_a_pause_was_not_in_rotation(deployment: Deployment) -> None:
    assert circuits.open_it(ONE, deployment.pk, reason="5 failures in a row")
    circuits.rest(ONE, deployment.pk, seconds=30, told=True)
    assert history() == [("closed", "open")]
    assert circuits.troubled()[0].rest_s > 0
