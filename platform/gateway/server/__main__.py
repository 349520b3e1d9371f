"""`python -m gateway.server [--host HOST] [--port PORT] [--fd N]`: one server process. `manage.py serve`: several.

`--fd` is a listening socket inherited from a supervisor, so that several processes share one port. To
`--ready-fd` a line is written once it listens, the sizes that the settings ask for (sizes.py), and then a dot now
and then (pulse.py).
Exit status: 0 after a drain, 1 if a system check fails, the address is taken, or with `--replaces` the database does
not answer or lacks migrations.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading

from gateway.server import reactor  # first of all: Twisted lets itself be installed only once

reactor.install()

EXIT_SECONDS = 3


def main(arguments: list[str] | None = None) -> int:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")
    import django

    django.setup()
    from django.conf import settings

    parser = argparse.ArgumentParser(prog="python -m gateway.server", description=__doc__)
    parser.add_argument("--host", default=settings.HOST)
    parser.add_argument("--port", type=int, default=settings.PORT)
    parser.add_argument("--fd", type=int, default=None, help="an inherited listening socket")
    parser.add_argument("--ready-fd", type=int, default=None, help="a pipe of the master's, to say that it listens")
    parser.add_argument(
        "--replaces", action="store_true", help="another serves until then: end unless fit to follow it"
    )
    parser.add_argument("--drain-seconds", type=float, default=settings.DRAIN_SECONDS)
    options = parser.parse_args(arguments)
    return 1 if not checks_pass() else serve(options)


def checks_pass() -> bool:
    """Print what `manage.py check` would refuse, with its hint."""
    from django.core.checks import run_checks

    serious = [message for message in run_checks() if message.is_serious() and not message.is_silenced()]
    for message in serious:
        print(message, file=sys.stderr)
    return not serious


def serve(options: argparse.Namespace) -> int:
    from django.conf import settings
    from twisted.internet.error import CannotListenError

    from gateway.asgi import application
    from gateway.server import books, descriptors, pulse, readiness
    from gateway.server.daphne import Server

    if options.replaces and (reasons := readiness.unfit()):
        print(f"Not fit to replace a worker that serves: {'; '.join(reasons)}", file=sys.stderr)
        return 1
    descriptors.raise_limit()
    if options.ready_fd is not None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a reload is the master's affair, whoever else was told
    server = Server(
        application,
        host=options.host,
        port=options.port,
        fd=options.fd,
        drain_seconds=options.drain_seconds,
        most_connections=descriptors.most_connections(settings.MAX_CONNECTIONS),
        on_start=lambda: None if options.ready_fd is None else pulse.begin(server.loop, options.ready_fd),
        on_stop=books.stop,
    )
    books.start(server.loop)
    try:
        server.run()
    except CannotListenError as problem:
        print(f"Cannot listen on {options.host}:{options.port}: {problem.socketError}", file=sys.stderr)
        return 1
    return 0


def leave(status: int) -> None:
    """Exit, soon in any case: the interpreter would wait for ever for a thread that hangs in a query."""
    last_resort = threading.Timer(EXIT_SECONDS, os._exit, [status])
    last_resort.daemon = True
    last_resort.start()
    sys.exit(status)


if __name__ == "__main__":
    leave(main())
