"""Server processes that share one listening socket, as behind a supervisor. Each can be killed at any moment."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.embedded import children
from tests.servers import ROOT, json_lines, server_environment

START_SECONDS = 180
STOP_SECONDS = 120


class Process:
    """One server and its log."""

    def __init__(self, number: int, log: Path, popen: subprocess.Popen[bytes]) -> None:
        self.number, self.log, self.popen = number, log, popen
        self.pid = popen.pid
        self.end = ""  # killed | stopped
        self.ended_at = 0.0  # time.monotonic(), as the times below
        self._begun_at, self.start_seconds = time.monotonic(), 0.0
        self.silences: list[tuple[float, float]] = []  # while it was frozen

    @property
    def listening(self) -> bool:
        return b'"listening"' in self.log.read_bytes()

    def lines(self) -> list[dict[str, Any]]:
        return json_lines(self.log)

    def wait_until_listening(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.listening:
            assert self.popen.poll() is None, f"server {self.number} ended by itself:\n{self.log.read_text()[-4000:]}"
            assert time.monotonic() < deadline, (
                f"server {self.number} does not listen:\n{self.log.read_text()[-4000:]}"
            )
            time.sleep(0.02)
        self.start_seconds = time.monotonic() - self._begun_at

    def kill(self) -> None:
        assert self.popen.poll() is None, f"server {self.number} ended by itself:\n{self.log.read_text()[-4000:]}"
        self.end = "killed"
        self.ended_at = time.monotonic()
        self.popen.kill()
        self.popen.wait()

    def freeze(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)
        self._frozen_at = time.monotonic()

    def thaw(self) -> None:
        self.popen.send_signal(signal.SIGCONT)
        self.silences.append((self._frozen_at, time.monotonic()))

    def stop(self) -> int:
        """Drain; its exit status."""
        self.end = "stopped"
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        status = self.popen.wait(STOP_SECONDS)
        self.ended_at = time.monotonic()
        return status


class Service(Process):
    """`manage.py serve`: a master and its workers, which write to one log."""

    def __init__(self, number: int, log: Path, popen: subprocess.Popen[bytes], count: int) -> None:
        super().__init__(number, log, popen)
        self.count, self.port = count, 0

    @property
    def workers(self) -> list[int]:
        """Pids of those that serve, by what the master says."""
        found: list[int] = []
        for line in self.said():
            if line["event"] == "worker ready":
                found.append(line["pid"])
            elif line["event"] in ("worker died", "worker left") and line["pid"] in found:
                found.remove(line["pid"])
        return found

    @property
    def listening(self) -> bool:
        return len(self.workers) >= self.count

    def said(self, event: str = "") -> list[dict[str, Any]]:
        """The master's lines, of one kind or all."""
        found = [line for line in self.lines() if line.get("logger") == "gateway.server.master"]
        return [line for line in found if event in ("", line["event"])]

    @property
    def idle(self) -> bool:
        """No reload is under way, and nobody drains."""
        ended = len(self.said("reloaded"))
        started, gone = self.said("worker started"), [*self.said("worker left"), *self.said("worker died")]
        return len(self.said("reloading")) == ended and len(started) - len(gone) == self.count

    def until_said(self, event: str, times: int = 1) -> None:
        deadline = time.monotonic() + START_SECONDS
        while len(self.said(event)) < times:
            assert time.monotonic() < deadline, (
                f"{event!r} was not said {times} times:\n{self.log.read_text()[-4000:]}"
            )
            time.sleep(0.05)

    def megabytes(self) -> int:
        """The most that a worker has had in memory since `forget_memory`."""
        return max(_status(pid, "VmHWM") // 1024 for pid in self.workers)

    def forget_memory(self) -> None:
        for pid in self.workers:
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


class Fleet:
    """Start processes from the main thread only: they die with the thread that started them."""

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        self.environment = server_environment(environment)
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)  # each of many starts would compile all of it again
        self.logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self.listener.getsockname()[1]
        self.processes: list[Process] = []

    @property
    def live(self) -> list[Process]:
        return [process for process in self.processes if not process.end]

    def start(self) -> Process:
        number = len(self.processes)
        path = self.logs / f"server-{os.getpid()}-{number}.log"
        # Every second one moves counters of its own, beside those that the others share.
        module = "tests.faults.busy_server" if number % 2 else "gateway.server"
        with path.open("wb") as log:
            popen = children.start(
                [sys.executable, "-m", module, "--fd", str(self.listener.fileno())],
                env=self.environment,
                output=log,
                cwd=ROOT,
                pass_fds=[self.listener.fileno()],
            )
        process = Process(number, path, popen)
        self.processes.append(process)
        return process

    def serve(self, workers: int = 2, **extra: str) -> Service:
        """`manage.py serve` on the shared socket; `extra` are settings of its own."""
        number = len(self.processes)
        path = self.logs / f"service-{os.getpid()}-{number}.log"
        command = [sys.executable, "manage.py", "serve", "--workers", str(workers)]
        with path.open("wb") as log:
            popen = children.start(
                [*command, "--fd", str(self.listener.fileno())],
                env=self.environment | extra,
                output=log,
                death_signal=signal.SIGTERM,  # its workers go with it
                cwd=ROOT,
                pass_fds=[self.listener.fileno()],
            )
        service = Service(number, path, popen, workers)
        service.port = self.port
        self.processes.append(service)
        service.wait_until_listening()
        return service

    def close(self) -> None:
        for process in self.processes:
            if process.popen.poll() is None:
                process.end = "stopped"
                process.popen.kill()  # workers of a service end with it, after a while
                process.popen.wait()
        with contextlib.suppress(OSError):
            self.listener.close()
