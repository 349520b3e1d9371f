"""The limits' work for Celery. Each may run twice, at once, or late; no window and no reset waits for them."""

from __future__ import annotations

from celery import shared_task
from django.utils import timezone

from gateway.limits import delivery, housekeeping, refusals_log, warnings


@shared_task(name="limits.warn")
def warn(**kwargs: object) -> None:
    warnings.look()
    delivery.send_due()


@shared_task(name="limits.open_windows")
def open_windows(**kwargs: object) -> None:
    housekeeping.open_windows()


@shared_task(name="limits.close_credits")
def close_credits(**kwargs: object) -> None:
    housekeeping.close_credits()


@shared_task(name="limits.tidy")
def tidy(**kwargs: object) -> None:
    housekeeping.tidy()
    refusals_log.tidy(now=timezone.now())
