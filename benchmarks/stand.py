"""The test stand: engines of its own, a seeded database, the mock upstream, one server process (or two)."""

from __future__ import annotations

import fcntl
import os
import shutil
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

from benchmarks.programs import Failed, Mock, running_mock
from gateway.embedded import children

ROOT = Path(__file__).resolve().parents[1]
MODEL = "bench-chat"
START_SECONDS, STOP_SECONDS = 60, 45


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]
    log: Path


@dataclass
class Stand:
    """What the scenarios measure."""

    home: Path
    mock: Mock
    key: str
    postgres: int  # the postmaster's pid
    servers: ExitStack = field(default_factory=ExitStack)

    def start_server(self, name: str) -> Server:
        return self.servers.enter_context(_running_server(self.home / "logs" / f"{name}.log"))


def prepare_environment(home: Path) -> None:
    """Before Django is imported, here and in the servers: a home of our own, whatever DATABASE_URL says."""
    for name in ("DATABASE_URL", "MIGRATION_DATABASE_URL", "VALKEY_URL", "API_KEYS", "API_PREFIX", "DEBUG"):
        os.environ[name] = ""
    os.environ |= {"COUNTERFOIL_HOME": str(home), "DJANGO_SETTINGS_MODULE": "gateway.settings"}


@contextmanager
def built(home: Path) -> Iterator[Stand]:
    """Everything from nothing, and nothing of it left at the end."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / f"{home.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failed(f"Another benchmark uses {home}. Set COUNTERFOIL_HOME to another folder.") from None
        shutil.rmtree(home, ignore_errors=True)
        prepare_environment(home)
        with running_mock() as mock, _engines(home), ExitStack() as servers:
            key = _seed(mock)
            postmaster = int((home / "postgres" / "postmaster.pid").read_text().split()[0])
            yield Stand(home, mock, key, postmaster, servers)
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _engines(home: Path) -> Iterator[None]:
    import django

    django.setup()
    from django.db import connections

    from gateway.embedded import engines

    try:
        yield
    finally:
        connections.close_all()
        engines.release(home)
        engines.wait_until_stopped(home, 30)


def _seed(mock: Mock) -> str:
    """A tenant, its key, and a model with both prices at the mock. Returns the key's secret."""
    from datetime import UTC, datetime

    from django.core.management import call_command

    from gateway.catalogue.models import Deployment, Model, Price, Provider
    from tenants.models import Tenant
    from tenants.services import issue_key

    call_command("migrate", verbosity=0, interactive=False)
    provider = Provider.objects.create(
        name="mock", protocol=Provider.Protocol.OPENAI, base_url=mock.url, credential="sk-mock"
    )
    model = Model.objects.create(public_id=MODEL, context_window=128_000, max_output_tokens=16_000)
    Deployment.objects.create(model=model, provider=provider, upstream_model="gpt-4o-mini")
    rates = {"input": 150_000_000, "cached_input": 75_000_000, "output": 600_000_000}
    since = datetime(2026, 1, 1, tzinfo=UTC)
    for side in (Price.Side.CHARGE, Price.Side.COST):
        Price.objects.create(model=model, side=side, currency="USD", effective_from=since, **rates)
    tenant = Tenant.objects.create(slug="bench", name="Bench", allowed_models=["*"])
    secret: str = issue_key(tenant=tenant, name="bench")[1]
    return secret


@contextmanager
def _running_server(log: Path) -> Iterator[Server]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener, log.open("wb") as output:
        port, number = listener.getsockname()[1], listener.fileno()
        command = [sys.executable, "-m", "gateway.server", "--fd", str(number)]
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
