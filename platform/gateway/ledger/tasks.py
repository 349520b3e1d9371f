"""The ledger's work for Celery; what it means stands where it is done."""

from __future__ import annotations

from celery import shared_task

from gateway.ledger import drift, partitions, processes, sweeper


@shared_task(name="ledger.beat_worker")
def beat_worker(**kwargs: object) -> None:
    """That this runs is the sign of life that /readyz asks for: it needs beat, the broker and a worker."""
    processes.beat_worker()


@shared_task(name="ledger.sweep")
def sweep(**kwargs: object) -> None:
    sweeper.sweep()


@shared_task(name="ledger.check_drift")
def check_drift(**kwargs: object) -> None:
    drift.check()


@shared_task(name="ledger.ensure_partitions")
def ensure_partitions(**kwargs: object) -> None:
    partitions.ensure()
