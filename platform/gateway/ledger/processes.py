"""Leases of processes that are not servers: the Celery worker's, which /readyz looks at."""

from __future__ import annotations

import os
import socket
from datetime import datetime, timedelta
from uuid import NAMESPACE_DNS, uuid5

from django.utils import timezone

from gateway.ledger.models import Process

WORKER = "worker"
FRESH = timedelta(seconds=60)


def beat_worker() -> None:
    """Called by a periodic task: proof that beat, broker and worker all work."""
    now = timezone.now()
    host = socket.gethostname()[:255]
    Process.objects.update_or_create(
        id=uuid5(NAMESPACE_DNS, f"worker.{host}"),
        defaults={"heartbeat_at": now, "pid": os.getpid(), "host": host, "kind": WORKER, "ended_at": None},
        create_defaults={
            "heartbeat_at": now,
            "pid": os.getpid(),
            "host": host,
            "kind": WORKER,
            "started_at": now,
        },
    )


def worker_seen_at() -> datetime | None:
    """When any worker last beat."""
    return (
        Process.objects.filter(kind=WORKER).order_by("-heartbeat_at").values_list("heartbeat_at", flat=True).first()
    )
