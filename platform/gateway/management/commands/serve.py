"""`manage.py serve`: check, then become the master of N server processes on one port (gateway.server.master).

It replaces itself by a process without Django: what holds the socket for months should be small, and must not
keep the settings of the day on which it was started.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from gateway import environment
from gateway.server.sizes import Sizes

OPTIONS = ("workers", "drain_seconds", "max_memory_mb")


class Command(BaseCommand):
    help = (
        "Serve with several processes on one port. SIGHUP replaces them one by one (new code, new settings) "
        "without refusing a connection; SIGTERM drains and stops."
    )
    requires_system_checks = "__all__"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default=settings.HOST)
        parser.add_argument("--port", type=port, default=settings.PORT, help="0 for any that is free")
        parser.add_argument("--fd", type=whole, help="a listening socket that is inherited, instead of host and port")
        parser.add_argument(
            "--workers",
            type=workers,
            metavar="N",
            help="processes, or 'auto' for one a CPU; default: WORKERS, else 1",
        )
        parser.add_argument(
            "--drain-seconds",
            type=seconds,
            metavar="S",
            help="how long a worker that is stopped lets its answers finish; default: DRAIN_SECONDS",
        )
        parser.add_argument(
            "--max-memory",
            dest="max_memory_mb",
            type=whole,
            metavar="MB",
            help="a worker that is larger is replaced by a new one; default: WORKER_MAX_MEMORY_MB, 0 for no limit",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the master listens to it
        said = {name: options[name] for name in OPTIONS if options[name] is not None}
        command = [sys.executable, "-m", "gateway.server.master"]
        command += ["--host", options["host"], "--port", str(options["port"])]
        if options["fd"] is not None:
            command += ["--fd", str(inherited(options["fd"]))]
        command += ["--sizes", Sizes.of_settings().dumps(), "--options", json.dumps(said)]
        if not settings.METRICS_DIR:
            command.append("--share-metrics")
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))  # they wait for the master
        os.execve(sys.executable, command, environment.given())


def inherited(descriptor: int) -> int:
    """The same, if it is a socket that listens; the master gets it, too. Raises CommandError."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as listener:
            listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        os.set_inheritable(descriptor, True)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CommandError(f"Cannot listen on descriptor {descriptor}: {reason}") from error
    if not listens:
        raise CommandError(f"Cannot listen on descriptor {descriptor}: it is no listening socket")
    return descriptor


def port(text: str) -> int:
    found = whole(text)
    if found > 65_535:
        raise ArgumentTypeError("expected a number from 0 to 65535")
    return found


def workers(text: str) -> int:
    """0 for `auto`."""
    if text.lower() == "auto":
        return 0
    found = whole(text)
    if not 1 <= found <= 1024:
        raise ArgumentTypeError("expected a number from 1 to 1024, or auto")
    return found


def whole(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 86_400:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds, at most a day")
    return found
