"""What the board does while the database is away, and when it is back: a real one, whose absence is made up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import SyncToAsync, sync_to_async
from django.db import OperationalError, connections

from gateway.catalogue.models import Deployment
from gateway.failover import circuits
from gateway.failover.board import Board, State
from gateway.failover.models import Circuit, HealthEvent

PATIENCE_S = 60.0

pytestmark = pytest.mark.django_db(transaction=True)


class Outage:
    """Every statement of the thread fails while it lasts, as if the connection could not be made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lasts = False
        for name in ("open_it", "reopen", "close", "rest", "claim", "abandon", "troubled"):
            monkeypatch.setattr(circuits, name, self._failing(getattr(circuits, name)))

    def _failing(self, statement: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self.lasts:
                raise OperationalError("the database is away")
            return statement(*args, **kwargs)

        return run


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(monkeypatch)


@pytest.fixture
async def board(outage: Outage, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Board]:
    monkeypatch.setattr("gateway.failover.board.CLAIM_PATIENCE_S", 60.0)  # the machine may be busy
    board = Board()
    board.start(asyncio.get_running_loop())
    yield board
    outage.lasts = False
    await board.stop()


@pytest.fixture(autouse=True)
def nobody_left() -> Iterator[None]:
    """The thread of sync_to_async has a connection of its own, which nobody else closes."""
    yield
    SyncToAsync.single_thread_executor.submit(connections.close_all).result()


async def until(holds: Callable[[], Any]) -> None:
    by = time.monotonic() + PATIENCE_S
    while not await sync_to_async(holds)():
        assert time.monotonic() < by, "it did not come to pass"
        await asyncio.sleep(0.02)


def fail(board: Board, deployment: Deployment) -> None:
    for _ in range(5):
        board.failed(deployment.pk, "connect")


def be_half_open(board: Board, deployment: Deployment) -> None:
    breaker = board._breakers[deployment.pk]
    breaker.open_until = time.monotonic()


async def test_it_goes_on_by_itself_and_tells_later(
    board: Board, outage: Outage, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    outage.lasts = True
    fail(board, deployment)
    assert board.state(deployment.pk) is State.OPEN
    board._breakers[deployment.pk].open_until += 300  # time enough to look at it
    with caplog.at_level(logging.WARNING):
        await until(lambda: "not shared at the moment" in caplog.text)
    assert board.state(deployment.pk) is State.OPEN
    be_half_open(board, deployment)
    assert [await board.claim_probe(deployment.pk) for _ in range(2)] == [True, False]
    board.failed(deployment.pk, "timeout", probe=True)
    assert board.opens_in(deployment.pk) > 5
    outage.lasts = False
    await until(lambda: Circuit.objects.filter(state="open", openings=2).exists())
    assert await sync_to_async(HealthEvent.objects.count)() == 2
    await until(lambda: "is shared again" in caplog.text)


async def test_it_forgets_nothing_that_it_has_not_told_yet(
    board: Board, outage: Outage, deployment: Deployment
) -> None:
    fail(board, deployment)
    await until(lambda: Circuit.objects.filter(state="open").exists())
    outage.lasts = True
    be_half_open(board, deployment)
    assert await board.claim_probe(deployment.pk)
    board.succeeded(deployment.pk, probe=True)
    assert board.state(deployment.pk) is State.CLOSED
    outage.lasts = False
    await until(lambda: Circuit.objects.filter(state="closed").exists())
    await asyncio.sleep(0)
    assert board.state(deployment.pk) is State.CLOSED


async def test_it_decides_a_claim_itself_when_the_database_does_not_answer(
    board: Board, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(board, deployment)
    await until(lambda: Circuit.objects.filter(state="open").exists())
    monkeypatch.setattr(circuits, "claim", lambda *_: time.sleep(3))
    monkeypatch.setattr("gateway.failover.board.CLAIM_PATIENCE_S", 0.1)
    be_half_open(board, deployment)
    assert await board.claim_probe(deployment.pk)


async def test_it_gives_a_probe_back_whose_caller_left_while_it_asked(
    board: Board, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(board, deployment)
    await until(lambda: Circuit.objects.filter(state="open").exists())
    await sync_to_async(Circuit.objects.update)(open_until="2026-01-01T00:00:00Z")
    await until(lambda: board.state(deployment.pk) is State.HALF_OPEN)
    asking = asyncio.create_task(board.claim_probe(deployment.pk))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: Circuit.objects.filter(probe_by=None).exists())
    await until(lambda: board.state(deployment.pk) is State.HALF_OPEN)
    assert await board.claim_probe(deployment.pk)


async def test_it_keeps_the_claim_of_a_probe_that_takes_long(
    board: Board, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(board, deployment)
    await until(lambda: Circuit.objects.filter(state="open").exists())
    await sync_to_async(Circuit.objects.update)(open_until="2026-01-01T00:00:00Z")
    await until(lambda: board.state(deployment.pk) is State.HALF_OPEN)
    assert await board.claim_probe(deployment.pk)
    first = (await sync_to_async(Circuit.objects.get)()).probe_until
    board._breakers[deployment.pk].claimed_until -= 15  # as if the time had passed
    await until(lambda: Circuit.objects.filter(probe_until__gt=first).exists())
    assert board.state(deployment.pk) is State.OPEN


async def test_it_survives_a_defect_of_its_own(
    board: Board, outage: Outage, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    troubled, failures = circuits.troubled, iter([True, True])

    def stumble() -> Any:
        if next(failures, False):
            raise RuntimeError("a defect")
        return troubled()

    monkeypatch.setattr(circuits, "troubled", stumble)
    await until(lambda: next(failures, None) is None)
    fail(board, deployment)
    await until(lambda: Circuit.objects.filter(state="open").exists())


async def test_it_publishes_what_is_left_when_it_stops(outage: Outage, deployment: Deployment) -> None:
    board = Board()
    board.start(asyncio.get_running_loop())
    fail(board, deployment)
    await board.stop()
    assert await sync_to_async(Circuit.objects.filter(state="open").exists)()
