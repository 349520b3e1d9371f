"""A Celery task that takes its time, for `celery -A gateway worker --include tests.slow_tasks`."""

from __future__ import annotations

import time

import redis

from gateway.celery import app


@app.task(name="tests.slow")
def slow(*, name: str, seconds: float, url: str) -> None:
    """Says in Valkey when it begins and when it has ended."""
    with redis.Redis.from_url(url) as valkey:
        valkey.rpush("tests.slow", f"{name} began")
        time.sleep(seconds)
        valkey.rpush("tests.slow", f"{name} ended")
