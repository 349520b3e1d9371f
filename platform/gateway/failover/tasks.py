"""Health's work for Celery. Each may run twice, at once, or late: breakers need none of it."""

from __future__ import annotations

from celery import shared_task

from gateway.failover import housekeeping, probing


@shared_task(name="failover.probe")
def probe(**kwargs: object) -> None:
    probing.probe_due()


@shared_task(name="failover.tidy")
def tidy(**kwargs: object) -> None:
    housekeeping.tidy()
