"""One Celery worker with the schedule inside, for `make run`. In production they are two processes."""

from __future__ import annotations

import os
import signal
import sys

from celery.signals import beat_embedded_init

from gateway.celery import app
from gateway.embedded.children import die_with_parent


@beat_embedded_init.connect
def die_with_worker(**kwargs: object) -> None:
    """The schedule runs in a fork, which a worker that is killed would leave behind."""
    die_with_parent(signal.SIGKILL, os.getppid())


if __name__ == "__main__":
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]  # there is no second worker to hear
    app.worker_main(["worker", "-B", "-P", "threads", "-c", "4", "--loglevel", "INFO", *quiet, *sys.argv[1:]])
