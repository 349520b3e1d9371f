"""The work for Celery. May run twice, at once, or late."""

from __future__ import annotations

from celery import shared_task

from gateway.replies import housekeeping


@shared_task(name="replies.tidy")
def tidy(**kwargs: object) -> None:
    housekeeping.tidy()
