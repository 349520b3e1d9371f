"""A place for one worker: started again when it dies, replaced without a gap when it must be."""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.server.workers import Worker

STEADY_SECONDS = 60.0  # what ran for so long starts again at once
LONGEST_PAUSE_SECONDS = 30.0

Say = Callable[..., None]  # a level, an event, and what there is to say of it


class NotStarted(Exception):
    """There is no process at all: no memory for one, or the folder or the Python that it needs is gone."""

    def __init__(self, generation: int, reason: str) -> None:
        super().__init__(reason)
        self.generation = generation


class Backoff:
    """0 s after a steady run, then 1, 2, 4 … 30 s."""

    def __init__(self) -> None:
        self.until = 0.0
        self._pause = 1.0

    def next(self, ran_seconds: float) -> float:
        """Counted from now; returns the seconds."""
        if ran_seconds > STEADY_SECONDS:
            self._pause = 0.0
        pause = self._pause
        self._pause = min(max(1.0, pause * 2), LONGEST_PAUSE_SECONDS)
        self.until = time.monotonic() + pause
        return pause

    def rest(self) -> None:
        """Not before the longest pause, in which the reason may go."""
        self.until = time.monotonic() + LONGEST_PAUSE_SECONDS


class Slot:
    def __init__(
        self, number: int, start: Callable[[bool], Worker], leave: Callable[[Worker], None], say: Say
    ) -> None:
        """`start` makes a worker of the present generation, which may replace one that serves, or raises NotStarted;
        `leave` is for one that another has replaced."""
        self.number = number
        self.serving: Worker | None = None
        self.fresh: Worker | None = None  # it serves once it is ready
        self.failed = 0  # the generation of the last one that never got ready
        self._start, self._leave, self._say = start, leave, say
        self._backoff = Backoff()
        self._recycling = Backoff()

    @property
    def workers(self) -> list[Worker]:
        return [worker for worker in (self.serving, self.fresh) if worker is not None]

    def look(self) -> None:
        """Whatever has happened since the last look."""
        if self.fresh is not None and self.fresh.hear():
            self._take_over(self.fresh)
        if self.serving is not None:
            self._feel_pulse(self.serving)
        if self.serving is not None and self.serving.ended():
            self._bury(self.serving, "worker died")
            self.serving = None
        if self.fresh is not None:
            if self.fresh.kill_if_due(time.monotonic()):
                self._say("error", "worker is not ready in time", pid=self.fresh.pid, worker=self.number)
            if self.fresh.ended():
                self.failed = self.fresh.generation
                self._bury(self.fresh, "worker could not start")
                self.fresh = None
                self._recycling.rest()
        if not self.workers and time.monotonic() >= self._backoff.until:
            self.replace()

    def _feel_pulse(self, worker: Worker) -> None:
        worker.hear()
        now = time.monotonic()
        if worker.hangs(now):
            silent = round(now - worker.heard_at)
            self._say("error", "worker hangs", pid=worker.pid, worker=self.number, seconds=silent)
            worker.give_up(now)
        worker.kill_if_due(now)

    def replace(self) -> None:
        """Start another; the one that serves goes when that is ready, and stays if it never is."""
        if self.fresh is not None:
            return
        try:
            self.fresh = self._start(self.serving is not None)
        except NotStarted as problem:
            self.failed = problem.generation
            pause = 0.0 if self.serving else self._backoff.next(0.0)
            how = {"reason": str(problem), "again_in_seconds": pause}
            self._say("error", "worker could not be started", worker=self.number, **how)
        else:
            self._say("info", "worker started", pid=self.fresh.pid, worker=self.number)

    def recycle_above(self, limit_mb: int) -> None:
        worker = self.serving
        if worker is None or self.fresh is not None or time.monotonic() < self._recycling.until:
            return
        memory = worker.memory_mb()
        if memory > limit_mb:
            self._recycling.next(time.monotonic() - worker.ready_at)
            self._say("warning", "worker is too large", pid=worker.pid, memory_mb=memory, limit_mb=limit_mb)
            self.replace()

    def hurry(self) -> None:
        """Do not wait before the next start: what made it fail may be mended."""
        self._backoff = Backoff()

    def _take_over(self, fresh: Worker) -> None:
        old, self.serving, self.fresh = self.serving, fresh, None
        self._say("info", "worker ready", pid=fresh.pid, worker=self.number)
        if old is not None:
            self._leave(old)

    def _bury(self, worker: Worker, event: str) -> None:
        worker.bury()
        pause = 0.0
        if worker is self.serving or self.serving is None:
            ran = time.monotonic() - worker.ready_at if worker.ready else 0.0
            pause = self._backoff.next(ran)
        how = worker.how_it_ended()
        self._say("error", event, pid=worker.pid, worker=self.number, **how, again_in_seconds=pause)
