"""What `make run` runs: engines, local model, worker and server, from nothing to ready, and down again in order.

The children live in sessions of their own, so that Ctrl-C reaches only this process, which stops server
(drain), worker and model, and lets go of the engines, whose keeper stops them. It ends when its parent ends,
and the kernel ends its children if it is killed: all of them are started from the main thread, whose end counts.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.embedded import children, engines, local_model, locks, model, steps
from gateway.embedded.child import Child
from gateway.embedded.progress import say

if TYPE_CHECKING:
    from gateway.embedded.seed import Seeded

LOOK_EVERY_S = 0.3
ENGINES_STOP_S = 25.0
BOOKING_S = 4.0  # after the drain: cancelled requests are booked, the desk empties its queue


class Engines:
    """The embedded engines that the settings ask for, started while Django loads."""

    def __init__(self, home: Path, *, postgres: bool, valkey: bool) -> None:
        self.home = home
        self.postgres = postgres
        self.wanted = postgres or valkey
        self._trouble: Exception | None = None
        self._thread = threading.Thread(target=self._ensure, daemon=True)

    def start(self) -> None:
        if self.wanted:
            if self.postgres and not (self.home / "postgres" / "PG_VERSION").exists():
                say("making the database (PostgreSQL)")
            self._thread.start()

    def _ensure(self) -> None:
        try:
            engines.ensure(self.home, with_postgres=self.postgres)
        except Exception as trouble:
            self._trouble = trouble

    def wait(self) -> None:
        if self.wanted:
            self._thread.join()
            if self._trouble:
                raise self._trouble

    def look(self) -> None:
        """Start them again if their keeper is gone."""
        if self.wanted and locks.is_free(self.home, "keeper"):
            say("the engines ended; starting them again")
            engines.revive(self.home, with_postgres=self.postgres)

    def stop(self) -> None:
        if self.wanted:
            say("stopping Valkey and PostgreSQL")
            engines.release(self.home)
            if not engines.wait_until_stopped(self.home, ENGINES_STOP_S):
                say("they go on: another process uses them")


class Supervisor:
    def __init__(self, home: Path, *, host: str, port: int, drain_s: float, engines: Engines) -> None:
        self.home = home
        self.url = steps.url_of(host, port)
        self.engines = engines
        self.seeded: Seeded | None = None
        self._listener: socket.socket | None = steps.listen(host, port)
        logs = home / "logs"
        logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.local_model = local_model.LocalModel(home) if model.weights() else None
        self.server = Child(
            "server", logs / "server.log", self._start_server, [(signal.SIGTERM, drain_s + BOOKING_S)]
        )
        # Tasks are idempotent: one that is cut short runs again.
        self.worker = Child("worker", logs / "worker.log", self._start_worker, [(signal.SIGTERM, 2.0)])
        self.model = Child("local model", logs / "model.log", self._start_model, [(signal.SIGTERM, 1.0)])

    @property
    def children(self) -> list[Child]:
        """In the order in which they stop."""
        return [self.server, self.worker, *([self.model] if self.local_model else [])]

    def _spawn(
        self, module: str, *arguments: str, log: Path, inherit: tuple[int, ...] = ()
    ) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return children.start([sys.executable, "-m", module, *arguments], output=output, pass_fds=inherit)

    def _start_server(self) -> subprocess.Popen[bytes]:
        assert self._listener is not None
        descriptor = self._listener.fileno()
        return self._spawn("gateway.server", "--fd", str(descriptor), log=self.server.log, inherit=(descriptor,))

    def _start_worker(self) -> subprocess.Popen[bytes]:
        return self._spawn("gateway.embedded.worker", log=self.worker.log)

    def _start_model(self) -> subprocess.Popen[bytes]:
        assert self.local_model is not None
        process = self.local_model.start()
        self._announce_model()
        return process

    def _announce_model(self) -> None:
        """Its port may be another one after a restart; before Django is set up, `start` does this later."""
        from django.apps import apps

        if apps.ready and self.local_model:
            from gateway.embedded import seed

            seed.point_provider_at(self.local_model.base_url, self.local_model.key)

    def start(self) -> None:
        """From nothing to ready; `seeded` is what was made for a new database. Raises Trouble."""
        import django

        self.engines.start()
        if self.local_model:
            self.model.start()
        else:
            say("no local model for this platform: the provider 'echo' takes its place")
        django.setup()
        self.engines.wait()

        from gateway.embedded import seed

        steps.migrate()
        self.seeded = seed.seed(with_local_model=self.local_model is not None)
        self._announce_model()
        say("starting the worker and the server")
        self.worker.start()
        self.server.start()
        self._wait()

    def _wait(self) -> None:
        steps.wait_for("server", lambda: steps.not_ready(self.url), self._all_must_live)
        if self.local_model:
            ready = self.local_model.answers
            steps.wait_for("local model", lambda: "" if ready() else "no answer yet", self._all_must_live)

    def _all_must_live(self) -> None:
        for child in self.children:
            child.must_live()

    def watch(self) -> None:
        """For ever; what ends is started again."""
        while True:
            for look in [self.engines.look, *(child.look for child in self.children)]:
                try:
                    look()
                except Exception as error:
                    say(f"{error}")
                    time.sleep(5)
            time.sleep(LOOK_EVERY_S)

    def stop(self) -> None:
        """Server (drain), worker, model, engines."""
        if self._listener:
            self._listener.close()  # new connections are refused from here on
        for child in self.children:
            child.stop()
        self.engines.stop()
