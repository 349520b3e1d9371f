"""The board of one process, by itself: nothing shared, no thread, no database."""

from __future__ import annotations

import pytest

from gateway.failover.board import Board, State


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Board:
    return Board(clock)


def fail(board: Board, deployment_id: int = 7, times: int = 5) -> None:
    for _ in range(times):
        board.failed(deployment_id, "status_500")


def test_it_opens_at_once_and_leaves_the_others_alone(board: Board) -> None:
    fail(board, times=4)
    assert (board.state(7), board.opens_in(7)) == (State.CLOSED, 0)
    fail(board, times=1)
    assert (board.state(7), board.opens_in(7)) == (State.OPEN, 5)
    assert (board.state(8), board.opens_in(8)) == (State.CLOSED, 0)


async def test_it_lets_one_caller_probe(board: Board, clock: Clock) -> None:
    assert not await board.claim_probe(7)
    fail(board)
    assert not await board.claim_probe(7)
    clock.now += 5
    assert board.state(7) is State.HALF_OPEN
    assert [await board.claim_probe(7) for _ in range(3)] == [True, False, False]
    assert board.state(7) is State.OPEN
    board.failed(7, "connect", probe=True)
    assert board.opens_in(7) == 10
    clock.now += 10
    assert await board.claim_probe(7)
    board.succeeded(7, probe=True)
    assert board.state(7) is State.CLOSED


async def test_it_takes_back_a_probe_whose_client_left(board: Board, clock: Clock) -> None:
    fail(board)
    clock.now += 5
    assert await board.claim_probe(7)
    board.abandoned(7)
    assert board.state(7) is State.HALF_OPEN and await board.claim_probe(7)


def test_it_counts_what_flows_until_it_is_over(board: Board) -> None:
    for _ in range(3):
        board.began(7)
    assert board._breakers[7].flowing == 3
    for _ in range(5):
        board.over(7)  # of some it may not know, if it has forgotten the deployment meanwhile
    assert board._breakers[7].flowing == 0


def test_it_lets_a_deployment_rest(board: Board, clock: Clock) -> None:
    board.rest(7, 3)
    assert (board.state(7), board.opens_in(7)) == (State.RESTING, 3)
    clock.now += 3
    assert board.state(7) is State.CLOSED


async def test_it_says_what_changed(board: Board, clock: Clock) -> None:
    said: list[tuple[int, State]] = []
    board.listeners.append(lambda deployment_id, state: said.append((deployment_id, state)))
    fail(board)
    clock.now += 5
    await board.claim_probe(7)
    board.succeeded(7, probe=True)
    assert said == [(7, State.CLOSED), (7, State.OPEN), (7, State.CLOSED)]  # a graph begins with health


async def test_it_stops_without_having_been_started(board: Board) -> None:
    await board.stop()
