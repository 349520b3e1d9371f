"""One worker of `manage.py serve`: a `python -m gateway.server` on the shared socket, from its start to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.embedded import children
from gateway.server.sizes import Sizes

if TYPE_CHECKING:
    import socket

READY_SECONDS = 60.0
LAST_WORDS_SECONDS = 2.0
BOOKING_SECONDS = 30.0  # after the drain: cancelled requests are booked, the desk empties its queue, traces are sent
PAGE = os.sysconf("SC_PAGE_SIZE")


class Worker:
    """It is starting until it says that it is ready, and leaving once it was told to."""

    def __init__(self, process: subprocess.Popen[bytes], ear: int, generation: int) -> None:
        self.process = process
        self.pid = process.pid
        self.generation = generation
        self.ready = False
        self.sizes = Sizes()  # as it read them, once it is ready
        self.started_at = self.ready_at = time.monotonic()
        self.heard_at = self.started_at
        self.kill_at = self.started_at + READY_SECONDS
        self.killed = False
        self._ear = ear  # what it says; -1 once there is nothing more to hear
        self._heard = b""

    @classmethod
    def start(
        cls, listener: socket.socket, drain_seconds: float | None, generation: int, *, replaces: bool = False
    ) -> Worker:
        """Call it from the main thread: the worker drains when the thread that started it ends. `replaces`: another
        serves, and goes on if this one would do worse."""
        ear, mouth = os.pipe()
        os.set_blocking(ear, False)
        fds = (listener.fileno(), mouth)
        command = [sys.executable, "-m", "gateway.server", "--fd", str(fds[0]), "--ready-fd", str(mouth)]
        if replaces:
            command.append("--replaces")
        if drain_seconds is not None:
            command += ["--drain-seconds", f"{drain_seconds:g}"]
        try:
            process = children.start(
                command, env=environment(), death_signal=signal.SIGTERM, cwd=Path.cwd(), pass_fds=fds
            )
        except BaseException:
            os.close(ear)
            raise
        finally:
            os.close(mouth)
        return cls(process, ear, generation)

    def hear(self) -> bool:
        """Whether it has just become ready."""
        if self._ear < 0:
            return False
        try:
            said = os.read(self._ear, 4096)
        except BlockingIOError:
            return False
        self.heard_at = time.monotonic()
        if not said:
            self._hang_up()  # it has ended, or is of an older version, which has no more to say
        if self.ready:
            return False
        self._heard += said
        line, whole, _ = self._heard.partition(b"\n")
        if not whole:
            return False
        self.sizes = Sizes.loads(line)
        self.ready, self.ready_at, self.kill_at = True, self.heard_at, float("inf")
        return True

    def hangs(self, now: float) -> bool:
        """It has said nothing for too long."""
        limit, listened_to = self.sizes.hang_seconds, self.ready and self._ear >= 0
        return listened_to and 0 < limit < now - self.heard_at and self.kill_at == float("inf")

    def give_up(self, now: float) -> None:
        """It may write where it hangs, and is killed."""
        self.process.send_signal(signal.SIGQUIT)
        self.kill_at = now + LAST_WORDS_SECONDS

    @property
    def ears(self) -> list[int]:
        return [self._ear] if self._ear >= 0 else []

    def ended(self) -> bool:
        return self.process.poll() is not None

    def how_it_ended(self) -> dict[str, object]:
        status = self.process.returncode
        return {"signal": signal.Signals(-status).name} if status < 0 else {"status": status}

    def stop(self, seconds: float) -> None:
        """Drain; it is killed after so many seconds and those for booking."""
        self.process.send_signal(signal.SIGTERM)
        self.kill_at = time.monotonic() + seconds + BOOKING_SECONDS

    def kill_if_due(self, now: float) -> bool:
        if self.killed or now < self.kill_at or self.ended():
            return False
        self.killed = True
        self.process.kill()
        return True

    def memory_mb(self) -> int:
        """Resident; 0 where the system does not tell, or when it has ended."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE // 2**20
        except (OSError, IndexError, ValueError):
            return 0

    def bury(self) -> None:
        self._hang_up()
        children.end_session(self.process)

    def _hang_up(self) -> None:
        if self._ear >= 0:
            os.close(self._ear)
            self._ear = -1


def environment() -> dict[str, str]:
    """What all workers get: the master's own, which has nothing of `.env` in it (each worker reads that anew).

    With what they share: METRICS_DIR, unless the settings name another (master.metrics_folder).
    """
    return dict(os.environ)
