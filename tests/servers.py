"""The real server process, for tests that talk to it over the wire.

    with running_server({"DRAIN_SECONDS": "2"}) as server:
        requests.get(server + "/health")

`running_server(env)` starts `python -m gateway.server` on a free port of 127.0.0.1 and yields its base URL
(`http://127.0.0.1:PORT`, a str with the process and its log beside it); at the end it is asked to stop and must.
The database is the one that Django is connected to now (pytest's test database: use
`@pytest.mark.django_db(transaction=True)`, so that the server sees the rows) unless `env` names a DATABASE_URL.
Secrets, the pepper and Valkey are those of this process's settings.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from django.conf import settings
from django.db import connection

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 180
STOP_SECONDS = 90


class RunningServer(str):
    """The base URL; beside it the process and what it logged."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int

    def lines(self) -> list[dict[str, Any]]:
        """Its JSON log lines so far."""
        return json_lines(self.log)

    def request_lines(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line.get("event") == "request"]

    def connect(self) -> socket.socket:
        """A raw connection, for what no HTTP client would send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def refuses(self) -> bool:
        """Nobody listens any more."""
        try:
            self.connect().close()
        except ConnectionRefusedError:
            return True
        return False

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)


def json_lines(log: Path) -> list[dict[str, Any]]:
    """The JSON lines of a log that may be growing.

    What follows the last end of line may be half a line: a write over the border of a page is seen half done.
    """
    whole, _, _ = log.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.split(b"\n") if line.startswith(b'{"')]


def free_port() -> int:
    """For a server that is started later: not of the range that the system gives to whoever asks for any port."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("no port of 100 is free")


@contextmanager
def running_server(
    env: Mapping[str, str] | None = None, *, command: tuple[str, ...] = ("-m", "gateway.server")
) -> Iterator[RunningServer]:
    """Start it, wait until it answers, yield its base URL, stop it."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener, tempfile.TemporaryDirectory() as folder:
        port = listener.getsockname()[1]
        server = RunningServer(f"http://127.0.0.1:{port}")
        server.port, server.log = port, Path(folder) / "log"
        with server.log.open("wb") as log:
            server.process = subprocess.Popen(
                [sys.executable, *command, "--fd", str(listener.fileno())],
                cwd=ROOT,
                env=server_environment(env or {}),
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        listener.close()  # else a connection would wait in the queue of a server that has died
        try:
            _wait_until_it_answers(server)
            yield server
        finally:
            try:
                server.stop()
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()
                raise


def server_environment(extra: Mapping[str, str]) -> dict[str, str]:
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "gateway.settings",
        "DATABASE_URL": database_url(),
        "VALKEY_URL": settings.VALKEY_URL,
        "COUNTERFOIL_HOME": str(settings.COUNTERFOIL_HOME),
        "SECRET_KEY": settings.SECRET_KEY,
        "KEY_PEPPER": settings.KEY_PEPPER,
        "ENCRYPTION_KEYS": ",".join(settings.ENCRYPTION_KEYS),
        "ALLOWED_HOSTS": "*",
        "HTTPS": "0",
        "UPSTREAM_ALLOW_LOOPBACK": "1",
        "PYTHONWARNINGS": "default",
        **extra,
    }


def database_url() -> str:
    """Of the database that this process is connected to."""
    parts = connection.settings_dict
    login = quote(parts["USER"], safe="")
    if parts["PASSWORD"]:
        login += ":" + quote(parts["PASSWORD"], safe="")
    options = {name: value for name, value in parts["OPTIONS"].items() if isinstance(value, str)}
    query = urlencode({"host": parts["HOST"], **options})
    port = f":{parts['PORT']}" if parts["PORT"] else ""
    return f"postgres://{login}@{port}/{quote(parts['NAME'], safe='')}?{query}"


def _wait_until_it_answers(server: RunningServer) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with {server.process.returncode}:\n{server.log.read_text()}")
        try:
            with socket.create_connection(("127.0.0.1", server.port), timeout=START_SECONDS) as plug:
                plug.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                if plug.recv(12).startswith(b"HTTP/1.1 200"):
                    return
        except ConnectionError:
            time.sleep(0.05)
    raise RuntimeError(f"the server did not answer:\n{server.log.read_text()}")
