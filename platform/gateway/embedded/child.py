"""One long-running child of the supervisor: started, watched, started again with a growing pause, stopped."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.embedded import children
from gateway.embedded.postgres import tail
from gateway.embedded.progress import say
from gateway.embedded.trouble import Trouble

LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0  # a child that ran this long starts with a short pause again


class Child:
    """`start` returns the new process; `stop_by` are signals in turn, each with its seconds to wait."""

    def __init__(
        self,
        name: str,
        log: Path,
        start: Callable[[], subprocess.Popen[bytes]],
        stop_by: Sequence[tuple[int, float]],
    ) -> None:
        self.name = name
        self.log = log
        self._start = start
        self._stop_by = stop_by
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._again_at = 0.0
        self._logged = 0  # bytes of the log that are of earlier starts
        self._pause = 1.0

    def start(self) -> None:
        self._started_at = time.monotonic()
        self._logged = self.log.stat().st_size if self.log.exists() else 0
        self._process = self._start()

    def must_live(self) -> None:
        """While everything starts: a child that ends now will end again. Raises Trouble."""
        if self._process is not None and self._process.poll() is not None:
            raise Trouble(
                f"The {self.name} ended at its start (exit status {self._process.returncode}). "
                f"{self.log} says:\n{tail(self.log, start=self._logged)}"
            )

    def look(self) -> None:
        """Once everything runs: start it again if it ended, after a pause that grows."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._again_at:
                self.start()
        elif self._process.poll() is not None:
            if now - self._started_at > STEADY_S:
                self._pause = 1.0
            say(
                f"the {self.name} ended by itself (exit status {self._process.returncode}, see {self.log}); "
                f"starting it again in {self._pause:.0f} s"
            )
            children.end_session(self._process)
            self._process = None
            self._again_at = now + self._pause
            self._pause = min(self._pause * 2, LONGEST_PAUSE_S)

    def stop(self) -> None:
        if self._process is not None:
            say(f"stopping the {self.name}")
            children.stop(self._process, by=self._stop_by)
            children.end_session(self._process)
            self._process = None
