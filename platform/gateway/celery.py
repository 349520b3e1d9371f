"""What no client waits for: `celery -A gateway worker`, with `-B` for the schedule (apart in production).

Every task may run twice, at once, or never for a while: each finds what there is to do by itself. A run
that was not taken up before the next is due expires, so that a worker that was away finds no pile.

SIGTERM drains a worker: it takes no more, ends what runs, gives back what it has not begun, and exits. What it
could not end (kill -9) is given to another after REDELIVERY_SECONDS, if it has not expired.
"""

from __future__ import annotations

import os

from celery import Celery
from celery.signals import worker_ready

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")


REDELIVERY_SECONDS = 900


def _every(seconds: float, task: str) -> dict[str, object]:
    return {"task": task, "schedule": seconds, "options": {"expires": seconds}}


BEAT_SCHEDULE = {
    "worker beats": _every(5, "ledger.beat_worker"),
    "sweep the holds of dead processes": _every(5, "ledger.sweep"),
    "roll usage up": _every(15, "billing.roll_up"),
    "keys' last use": _every(60, "billing.update_last_used"),
    "counters against the ledger": _every(180, "ledger.check_drift"),
    "warnings of limits": _every(30, "limits.warn"),
    "windows ahead": _every(300, "limits.open_windows"),
    "expired credit": _every(60, "limits.close_credits"),
    "old windows, warnings and refusals": _every(3600, "limits.tidy"),
    "active probes of deployments": _every(5, "failover.probe"),
    "old health events": _every(3600, "failover.tidy"),
    "kept answers": _every(60, "replies.tidy"),
    "partitions ahead": _every(3600, "ledger.ensure_partitions"),
}

app = Celery("gateway")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.update(
    beat_schedule=BEAT_SCHEDULE,
    beat_scheduler="celery.beat:Scheduler",  # in memory: no file that a kill -9 could spoil
    task_ignore_result=True,
    task_acks_late=True,  # a message is taken off the queue when its task has ended
    broker_transport_options={"visibility_timeout": REDELIVERY_SECONDS},
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,  # gateway.logs is configured by Django's set-up
    broker_connection_retry_on_startup=True,
)
app.autodiscover_tasks(["gateway.billing", "gateway.failover", "gateway.ledger", "gateway.limits", "gateway.replies"])


@worker_ready.connect
def beat_at_once(**kwargs: object) -> None:
    """The first beat comes with the start, not an interval later: /readyz waits for it."""
    app.send_task("ledger.beat_worker", expires=5)
