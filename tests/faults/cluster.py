"""A PostgreSQL that may be stopped, killed and frozen: the embedded engine itself, without its keeper."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import psycopg

from gateway.embedded import children, layout
from gateway.embedded.postgres import Postgres

STOP_SECONDS = 180
RECOVERY_SECONDS = 8.0
DESKS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'counterfoil desk' ORDER BY random()"


class Cluster:
    """Use it from the main thread only: the engine dies with the thread that started it."""

    def __init__(self, home: Path) -> None:
        shutil.rmtree(home, ignore_errors=True)
        (home / "logs").mkdir(parents=True, mode=0o700)
        identity = children.Identity(home / "postgres")
        if identity.kind == "nobody":
            home.chmod(0o711)
            home.parent.chmod(0o711)
        self.home = home
        self.postgres = Postgres(home, identity)
        identity.own(self.postgres.sockets)
        self.starts = 0
        self.silences: list[tuple[float, float]] = []  # time.monotonic(): when nothing could be written
        self._silent_since: float | None = None

    @property
    def sockets(self) -> Path:
        return self.postgres.sockets

    def start(self) -> None:
        self.postgres.start()
        self.starts += 1
        self._speak()

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT: fast, sessions are ended. SIGQUIT: at once, as after a power cut; the next start recovers."""
        assert self.postgres.process is not None
        self._silent_since = time.monotonic()
        self.postgres.process.send_signal(number)
        self.postgres.process.wait(STOP_SECONDS)

    def freeze(self) -> None:
        """Nothing answers and nothing is refused: a disk or a network that hangs."""
        self._silent_since = time.monotonic()
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in reversed(self._processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._speak()

    def kill_a_desks_session(self) -> None:
        """kill -9 of one backend: PostgreSQL ends all sessions and recovers, as after any crash of its own."""
        with psycopg.connect(host=str(self.sockets), user=layout.SUPERUSER, dbname="postgres") as connection:
            found = connection.execute(DESKS).fetchone()
        if found is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(found[0], signal.SIGKILL)
                self.silences.append((time.monotonic(), time.monotonic() + RECOVERY_SECONDS))

    def _speak(self) -> None:
        if self._silent_since is not None:
            self.silences.append((self._silent_since, time.monotonic()))
            self._silent_since = None

    def close(self) -> None:
        self.thaw()
        self.postgres.stop()
        if self.sockets.parent != self.home:
            shutil.rmtree(self.sockets, ignore_errors=True)

    def _processes(self) -> list[int]:
        """The postmaster first: frozen first, it starts nobody new."""
        if self.postgres.process is None or self.postgres.process.poll() is not None:
            return []
        postmaster = self.postgres.process.pid
        pids = [postmaster]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                    if int(after_name[1]) == postmaster:
                        pids.append(int(entry.name))
        return pids
