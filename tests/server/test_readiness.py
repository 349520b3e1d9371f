"""/readyz: every reason to send this process no requests, and none of them for /livez."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from unittest.mock import Mock
from uuid import uuid4

import pytest
from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from gateway.ledger import desk
from gateway.ledger.models import Process
from gateway.server import readiness, state
from tests.server.conftest import until
from tests.server.raw import ask
from tests.servers import RunningServer, running_server

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def fresh_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_probe", None)
    monkeypatch.setattr(readiness, "TIMEOUT_SECONDS", 60.0)  # on a busy machine, too
    monkeypatch.setattr(desk, "current", lambda: Mock(alive=True))


@pytest.fixture
def worker() -> Process:
    now = timezone.now()
    return Process.objects.create(id=uuid4(), kind="worker", host="here", pid=1, started_at=now, heartbeat_at=now)


async def test_it_is_ready_with_everything_there(worker: Process) -> None:
    assert await readiness.reasons() == []


async def test_it_is_not_ready_without_a_worker() -> None:
    assert await readiness.reasons() == ["worker: none has ever started"]


@pytest.fixture
def silent_worker(worker: Process) -> None:
    worker.heartbeat_at -= timedelta(seconds=90)
    worker.save()


async def test_it_is_not_ready_when_the_worker_has_gone_silent(silent_worker: None) -> None:
    (reason,) = await readiness.reasons()
    assert reason.startswith("worker: last seen 9")


async def test_it_is_not_ready_while_a_migration_is_missing(worker: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = readiness._wanted() | {("tenants", "9999_later")}
    monkeypatch.setattr(readiness, "_wanted", lambda: wanted)
    assert await readiness.reasons() == ["migrations: not applied: tenants.9999_later"]


async def test_it_is_not_ready_with_another_clock(worker: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "MAX_SKEW_SECONDS", -1)
    (reason,) = await readiness.reasons()
    assert reason.startswith("clock: ")


async def test_it_is_not_ready_when_the_desk_is_dead(worker: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "current", lambda: Mock(alive=False))
    assert await readiness.reasons() == ["desk: not writing"]


async def test_it_is_not_ready_while_it_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "draining", True)
    assert await readiness.reasons() == ["draining"]


async def test_it_does_not_wait_for_a_database_that_hangs(worker: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(readiness, "TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(readiness, "examine", lambda: [] if let_go.wait(20) else ["?"])
    try:
        for _ in range(3):
            (reason,) = await readiness.reasons()
            assert reason.startswith("database: no answer within")
    finally:
        let_go.set()
    while await readiness.reasons():  # and it comes back by itself
        await asyncio.sleep(0.01)


async def test_many_askers_cost_one_probe(worker: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    examine = Mock(return_value=[])
    monkeypatch.setattr(readiness, "examine", examine)
    await asyncio.gather(*(readiness.reasons() for _ in range(50)))
    assert examine.call_count == 1


def test_it_hides_what_the_database_said(worker: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CursorWrapper, "execute", Mock(side_effect=RuntimeError("password=hunter2")))
    assert readiness.examine() == ["database: not reachable"]
    assert connection.connection is None


def test_the_page_says_why(worker: Process) -> None:
    with running_server() as server:
        Process.objects.filter(pk=worker.pk).update(heartbeat_at=timezone.now())  # the server has taken its time
        until(lambda: ask(server, "GET", "/readyz").status == 200)
        assert ask(server, "GET", "/readyz").json() == {"status": "ready", "reasons": []}


def test_the_pages_without_a_database(stub: RunningServer) -> None:
    assert ask(stub, "GET", "/livez").status == 200
    assert ask(stub, "GET", "/health").status == 200
    assert ask(stub, "GET", "/readyz").status == 503
    until(lambda: "database: not reachable" in ask(stub, "GET", "/readyz").json()["reasons"])


def test_only_what_its_predecessor_does_better_makes_a_process_unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Celery worker and a wrong clock are the same for both."""
    assert readiness.unfit() == []
    monkeypatch.setattr(readiness, "_wanted", lambda: {("tenants", "9999_later")})
    assert readiness.unfit() == ["migrations: not applied: tenants.9999_later"]


def test_a_process_without_a_database_is_unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CursorWrapper, "execute", Mock(side_effect=RuntimeError))
    assert readiness.unfit() == ["database: not reachable"]
