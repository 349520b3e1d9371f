"""What `manage.py serve` becomes: holds the listening socket, and keeps N workers serving on it.

It has no Django, no thread and no connection; its loop sleeps until a signal, a worker's word or half a second.

    SIGHUP            replace the workers one by one by new ones, which read code and settings anew; the socket
                      stays open. One that cannot start leaves those that run alone. A second one comes after.
    SIGTERM, SIGINT   close the socket, let the workers drain, exit: 0 if all of them ended well. A second one
                      cuts the drain short, a third kills.
    SIGCHLD           a worker that died is started again, at once or after a pause that grows

One whose event loop hangs is killed and started again likewise.

If it is killed, the kernel tells the workers to drain. As PID 1 it reaps whoever is left to it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from gateway import logs
from gateway.server.descriptors import raise_limit
from gateway.server.sizes import Sizes
from gateway.server.slots import NotStarted, Slot
from gateway.server.workers import Worker

BACKLOG = 2048
LOOK_SECONDS = 0.5
STOPPED_SECONDS = 5.0
MEMORY_EVERY_SECONDS = 3.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Master:
    def __init__(self, listener: socket.socket, sizes: Sizes, options: dict[str, Any]) -> None:
        """`options` are those of the command line, which hold whatever the settings say."""
        self.listener = listener
        self.sizes = sizes
        self.options = options
        self.generation = 1
        self.slots = [self._slot(number) for number in range(sizes.count)]
        self.leaving: list[Worker] = []
        self.rolling = self.roll_again = False
        self.stops = 0  # SIGTERMs so far
        self.status = 0
        self._served = False  # a worker has been ready
        self._memory_at = 0.0
        self._looked_at = time.monotonic()

    def run(self) -> int:
        """Until it is told to stop, or nothing can start at all; the exit status."""
        self._wake, alarm = socket.socketpair()
        with self._wake, alarm:
            for end in (self._wake, alarm):
                end.setblocking(False)
            signal.set_wakeup_fd(alarm.fileno(), warn_on_full_buffer=False)
            for number in SIGNALS:
                signal.signal(number, lambda *_: None)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # `manage.py serve` blocked them until now
            address = self.listener.getsockname()
            say("info", "serving", address=address, workers=len(self.slots), pid=os.getpid())
            self._look()
            while not self._over():
                self._sleep()
                reap(self._workers())
                self._look()
            signal.set_wakeup_fd(-1)
        say("info", "stopped", status=self.status)
        return self.status

    # ---- the loop ----------------------------------------------------------------------------------------------

    def _sleep(self) -> None:
        ears = [ear for slot in self.slots for worker in slot.workers for ear in worker.ears]
        poll = select.poll()  # select() knows no descriptor above 1023
        for ear in (self._wake.fileno(), *ears):
            poll.register(ear, select.POLLIN)
        poll.poll(LOOK_SECONDS * 1000)
        try:
            numbers = self._wake.recv(4096)
        except BlockingIOError:
            return
        for number in numbers:
            if number == signal.SIGHUP:
                self._on_reload()
            elif number in (signal.SIGTERM, signal.SIGINT):
                self._on_stop()

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at > STOPPED_SECONDS:  # we were not running, and the workers perhaps were not, either
            for worker in self._workers():
                worker.heard_at = now
        self._looked_at = now
        for worker in list(self.leaving):
            if worker.kill_if_due(now):
                say("error", "worker does not stop", pid=worker.pid)
            if worker.ended():
                self._left(worker)
        if self.stops:
            return
        for slot in self.slots:
            slot.look()
        self._served = self._served or any(slot.serving for slot in self.slots)
        if not self._served and all(slot.failed for slot in self.slots):
            say("error", "no worker could start: what is wrong stands above")
            self.status = 1
            self._on_stop()
        elif self.rolling:
            self._roll()
        elif self.sizes.max_memory_mb and now >= self._memory_at:
            self._memory_at = now + MEMORY_EVERY_SECONDS
            self._look_at_memory()

    def _over(self) -> bool:
        return bool(self.stops) and not self.leaving

    def _workers(self) -> list[Worker]:
        return [*self.leaving, *(worker for slot in self.slots for worker in slot.workers)]

    def _slot(self, number: int) -> Slot:
        return Slot(number, self._start, self._leave, say)

    def _start(self, replaces: bool) -> Worker:
        try:
            drain_seconds = self.options.get("drain_seconds")
            return Worker.start(self.listener, drain_seconds, self.generation, replaces=replaces)
        except (OSError, subprocess.SubprocessError) as error:  # those that run must not end with us
            raise NotStarted(self.generation, str(error)) from error

    def _leave(self, worker: Worker) -> None:
        """By its own settings: it may have read others than the last reload did."""
        sizes = worker.sizes.under(self.options) if worker.ready else self.sizes
        worker.stop(sizes.drain_seconds)
        self.leaving.append(worker)

    def _left(self, worker: Worker) -> None:
        worker.bury()
        self.leaving.remove(worker)
        say("info", "worker left", pid=worker.pid, **worker.how_it_ended())
        if self.stops and worker.ready and worker.process.returncode:
            self.status = 1

    def _look_at_memory(self) -> None:
        """One at a time: two copies of all workers might be too much for the machine."""
        for slot in self.slots:
            if not any(one.fresh for one in self.slots):
                slot.recycle_above(self.sizes.max_memory_mb)

    # ---- SIGHUP ------------------------------------------------------------------------------------------------

    def _on_reload(self) -> None:
        if self.stops:
            return
        for slot in self.slots:
            slot.hurry()
        if self.rolling:
            self.roll_again = True
            return
        say("info", "reloading", workers=len(self.slots))
        self.rolling = True
        self.generation += 1

    def _roll(self) -> None:
        """The next step: one worker at a time, each when the one before is ready."""
        for slot in self.slots:
            if slot.fresh is not None:
                return
            if slot.serving is None or slot.serving.generation < self.generation:
                if slot.failed == self.generation:
                    self._rolled("reload failed: those that ran go on")
                elif slot.serving is not None:  # else it starts again by itself, after its pause
                    slot.replace()
                return
        self._rolled("")

    def _rolled(self, problem: str) -> None:
        self.rolling = False
        if problem:
            say("error", problem, worker_generation=self.generation)
        else:
            self._resize()
            say("info", "reloaded", workers=len(self.slots))
        if self.roll_again:
            self.roll_again = False
            self._on_reload()

    def _resize(self) -> None:
        """By the settings that the new workers have read."""
        read = [slot.serving.sizes for slot in self.slots if slot.serving]
        self.sizes = (read[-1] if read else self.sizes).under(self.options)
        surplus, self.slots = self.slots[self.sizes.count :], self.slots[: self.sizes.count]
        for slot in surplus:
            for worker in slot.workers:
                self._leave(worker)
        self.slots += [self._slot(number) for number in range(len(self.slots), self.sizes.count)]

    # ---- SIGTERM -----------------------------------------------------------------------------------------------

    def _on_stop(self) -> None:
        self.stops += 1
        if self.stops == 1:
            say("info", "stopping", seconds=self.sizes.drain_seconds)
            self.listener.close()
            for slot in self.slots:
                for worker in slot.workers:
                    self._leave(worker)
            self.slots = []
        for worker in self.leaving:
            if self.stops == 2:
                worker.stop(0)
            elif self.stops > 2:
                worker.kill_at = 0.0


def reap(workers: list[Worker]) -> None:
    """Children of our own, and those that come to PID 1 when their parents die."""
    own = {worker.pid: worker for worker in workers}
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None:
            return
        if found.si_pid in own:
            own[found.si_pid].ended()
        else:
            os.waitpid(found.si_pid, 0)


def say(level: str, event: str, **more: object) -> None:
    """A line of the log, in the form of all others."""
    logs.emit({"time": logs.now(), "level": level, "event": event, "logger": "gateway.server.master", **more})


def listen(host: str, port: int, descriptor: int | None) -> socket.socket:
    """A new socket, or one that was inherited. Raises OSError."""
    if descriptor is None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    listener = socket.socket(fileno=descriptor)
    listener.set_inheritable(False)  # workers are given it by name
    return listener


@contextlib.contextmanager
def metrics_folder(wanted: bool) -> Iterator[None]:
    """For what the workers count, so that any of them can tell the sum; for as long as this process lives."""
    with contextlib.ExitStack() as stack:
        for parent in (None, "/dev/shm") if wanted else ():
            with contextlib.suppress(OSError):  # a container whose files may only be read
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="counterfoil-", dir=parent))
                os.environ["METRICS_DIR"] = folder
                break
        yield


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway.server.master", description="Use `manage.py serve`.")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--fd", type=int)
    parser.add_argument("--sizes", type=Sizes.loads, required=True, help="of the settings")
    parser.add_argument("--options", type=json.loads, required=True, help="what the command line said of them")
    parser.add_argument("--share-metrics", action="store_true", help="METRICS_DIR is not set")
    found = parser.parse_args()
    raise_limit()
    try:
        listener = listen(found.host, found.port, found.fd)
    except OSError as error:
        print(f"Cannot listen on {found.host}:{found.port}: {error.strerror or error}", file=sys.stderr)
        return 1
    with metrics_folder(found.share_metrics):
        return Master(listener, found.sizes.under(found.options), found.options).run()


if __name__ == "__main__":
    sys.exit(main())
