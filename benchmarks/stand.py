"""The test stand: engines of its own, a seeded database, the mock upstream, one server process or two."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import engines
from benchmarks.cast import POPULATIONS, SINGLE, Key, seed, seed_catalogue
from benchmarks.programs import Failed, Mock, running_mock
from gateway.embedded import children

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS, STOP_SECONDS = 60, 45


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def admissions(self) -> Path:
        """What a timed server noted; there when it has stopped."""
        return _admissions(self.log)


@dataclass
class Stand:
    """What the scenarios measure."""

    home: Path
    mock: Mock
    keys: dict[str, list[Key]]  # by population
    postgres: int  # the postmaster's pid
    servers: ExitStack = field(default_factory=ExitStack)

    def start_server(self, name: str, *, timed: bool = False) -> Server:
        """As in production; timed: it notes its admissions too (`timed_server`)."""
        log = self.home / "logs" / f"{name}.log"
        return self.servers.enter_context(_running_server(log, timed=timed))


@contextmanager
def built(home: Path) -> Iterator[Stand]:
    """Everything from nothing, and nothing of it left at the end."""
    with running_mock() as mock, engines.running(home), ExitStack() as servers:
        seed_catalogue(mock.url)
        keys = {population.name: seed(population) for population in (SINGLE, *POPULATIONS)}
        yield Stand(home, mock, keys, engines.postmaster(home), servers)


def _admissions(log: Path) -> Path:
    return log.with_suffix(".admissions")


@contextmanager
def _running_server(log: Path, *, timed: bool) -> Iterator[Server]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener, log.open("wb") as output:
        port, number = listener.getsockname()[1], listener.fileno()
        module = ["benchmarks.timed_server", str(_admissions(log))] if timed else ["gateway.server"]
        command = [sys.executable, "-m", *module, "--fd", str(number)]
        process = children.start(command, output=output, cwd=ROOT, pass_fds=[number])
    server = Server(f"http://127.0.0.1:{port}/v1", process, log)
    try:
        _wait_for(server, f"http://127.0.0.1:{port}/livez")
        yield server
    finally:
        stop(server)


def stop(server: Server) -> None:
    """Let it drain: what it was given is in the books afterwards."""
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
    try:
        server.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
        raise Failed(f"The server did not stop within {STOP_SECONDS} s.") from None


def _wait_for(server: Server, url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise Failed(f"The server ended with {server.process.returncode}:\n{server.log.read_text()[-4000:]}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise Failed(f"The server does not answer:\n{server.log.read_text()[-4000:]}")
