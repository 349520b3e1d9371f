"""`make run`, or `python -m gateway.embedded`: start everything, say how to use it, stop everything on Ctrl-C.

HOST, PORT and COUNTERFOIL_HOME come from the environment or `.env`. Progress is on stderr, the result on stdout.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from gateway.embedded import children, locks
from gateway.embedded.progress import say
from gateway.embedded.trouble import Trouble

if TYPE_CHECKING:  # both read the settings
    from gateway.embedded.supervisor import Supervisor


class Stop(BaseException):
    """Ctrl-C, SIGTERM, or the parent's end: whatever is going on is given up."""


def main() -> int:
    argparse.ArgumentParser(prog="make run", description=__doc__).parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    children.die_with_parent(signal.SIGTERM, os.getppid())
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")
    try:
        run()
    except Stop:
        say("stopped")
    except Trouble as trouble:
        say(str(trouble))
        return 1
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(again, lambda *_: say("stopping already; please wait"))
    raise Stop


def run() -> None:
    """Never returns by itself: raises Stop or Trouble, after everything is down again."""
    from django.conf import settings

    from gateway.embedded import steps
    from gateway.embedded.supervisor import Engines, Supervisor

    steps.settings_must_be_readable()
    home: Path = settings.COUNTERFOIL_HOME
    shown = home.relative_to(Path.cwd()) if home.is_relative_to(Path.cwd()) else home
    prefix = "" if home == settings.BASE_DIR / "var" else f"COUNTERFOIL_HOME={shown} "
    os.environ["COUNTERFOIL_HOME"] = str(home)
    # The local model is on this machine; with DATABASE_URL the default would refuse it as an upstream.
    os.environ.setdefault("UPSTREAM_ALLOW_LOOPBACK", "1")
    _only_one(home)
    supervisor = Supervisor(
        home,
        host=settings.HOST,
        port=settings.PORT,
        drain_s=settings.DRAIN_SECONDS,
        engines=Engines(home, postgres=settings.EMBEDDED, valkey="VALKEY_URL" not in os.environ),
    )
    greeted = False
    try:
        supervisor.start()
        _greet(supervisor, prefix)
        greeted = True
        supervisor.watch()
    finally:
        supervisor.stop()
        if supervisor.seeded and not greeted:  # the next start can show them no more
            print(f"Made before the start failed, and shown this once:\n{supervisor.seeded}", flush=True)


def _greet(supervisor: Supervisor, prefix: str) -> None:
    from django.conf import settings

    from gateway.embedded import seed, steps
    from gateway.embedded.greeting import Greeting

    seeded, shown = supervisor.seeded, seed.model_to_show()
    if seeded and shown:
        steps.complete_chat(f"{supervisor.url}{settings.API_PREFIX}", seeded.key, shown)
    greeting = Greeting(
        url=supervisor.url,
        api_prefix=settings.API_PREFIX,
        model=shown,
        seeded=seeded,
        logs=supervisor.home / "logs",
        prefix=prefix,
    )
    print(greeting.text(), flush=True)


def _only_one(home: Path) -> None:
    """Held until this process ends."""
    if not locks.acquire(locks.open_file(home, "supervisor"), shared=False):
        raise Trouble(
            f"Counterfoil runs on {home} already. A second copy needs its own folder and port: "
            "make run PORT=8001 COUNTERFOIL_HOME=var-2"
        )


if __name__ == "__main__":
    sys.exit(main())
