"""One request's way from leg to leg, with nobody behind them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.catalogue.snapshot import ModelFacts, Placement
from gateway.errors import GatewayError, InvalidRequest, RateLimited, UpstreamError
from gateway.failover import attempts, load
from gateway.failover.attempts import Trip
from gateway.failover.board import Board, State
from gateway.failover.legs import Leg
from gateway.failover.load import loads
from gateway.upstreams.base import Target


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(load, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    board = Board()
    monkeypatch.setattr(attempts, "board", board)
    loads.clear()
    monkeypatch.setattr(attempts, "loads", loads)
    return board


def leg(deployment_id: int, model: str = "acme-chat") -> Leg:
    facts = ModelFacts(1, model, 0, "acme", None, None, "reasoning", True, ())
    return Leg(Placement(Target(deployment_id, 1, "openai", "http://x", "", "m", 5, 5)), facts, None)


def trip(*legs: Leg) -> Trip:
    return Trip(legs, first=legs[0], stream=False, most=3, within_s=60, move=None)


def going(outcomes: dict[int, BaseException | str]) -> Callable[[Leg], Awaitable[str]]:
    async def go(leg: Leg) -> str:
        outcome = outcomes[leg.deployment_id]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return go


def error(status: int | None, kind: type[GatewayError] = UpstreamError, **facts: Any) -> GatewayError:
    found = kind("no")
    found.upstream_status = status
    if isinstance(found, UpstreamError):
        found.phase = "head"
    for name, value in facts.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize(
    ("failure", "state"),
    [
        (ValueError("a defect of ours"), State.HALF_OPEN),  # says nothing of the deployment: another may probe it
        (error(None, phase="connect", ours=True), State.HALF_OPEN),
        (error(400, InvalidRequest), State.CLOSED),
        (error(500), State.OPEN),
    ],
)
async def test_what_a_probe_finds_out(board: Board, failure: BaseException, state: State) -> None:
    for _ in range(5):
        board.failed(1, "connect")
    breaker = board._breakers[1]
    breaker.open_until = 0.0
    assert board.state(1) is State.HALF_OPEN
    with pytest.raises(type(failure)):
        await trip(leg(1)).run(going({1: failure}))
    assert board.state(1) is state


async def test_want_of_files_here_is_no_fault_of_the_providers(board: Board) -> None:
    for _ in range(30):
        with pytest.raises(UpstreamError):
            await trip(leg(1), leg(2)).run(going(dict.fromkeys((1, 2), error(None, phase="connect", ours=True))))
    assert board.state(1) is board.state(2) is State.CLOSED
    assert loads[1].may_retry


@pytest.mark.parametrize(
    ("outcomes", "told"),
    [
        ((error(503), error(400, InvalidRequest)), 503),  # too long for the fallback, perhaps
        ((error(503), error(None, InvalidRequest)), 503),  # its protocol has no words for it
        ((error(400, InvalidRequest), "fine"), 400),
        ((error(None, InvalidRequest), error(400, InvalidRequest)), 400),
    ],
)
async def test_a_stand_in_that_does_not_take_the_request_does_not_make_it_wrong(
    outcomes: tuple[BaseException | str, ...], told: int
) -> None:
    route = trip(leg(1), leg(2, "acme-small"))
    with pytest.raises(GatewayError) as raised:
        await route.run(going(dict(enumerate(outcomes, 1))))
    assert raised.value.upstream_status == told


async def test_what_another_deployment_of_the_model_calls_wrong_is_wrong() -> None:
    with pytest.raises(InvalidRequest):
        await trip(leg(1), leg(2)).run(going({1: error(503), 2: error(400, InvalidRequest)}))


async def test_a_reserve_that_once_failed_often_is_asked_again_after_a_while(clock: Clock) -> None:
    outcomes: dict[int, BaseException | str] = {1: error(500), 2: "from the reserve"}
    for _ in range(50):
        loads[2].failed()
    with pytest.raises(UpstreamError):
        await trip(leg(1), leg(2)).run(going(outcomes))
    clock.now += 59
    assert not loads[2].may_retry
    clock.now += 2
    assert await trip(leg(1), leg(2)).run(going(outcomes)) == "from the reserve"


async def test_what_one_asked_to_wait_passes_while_another_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, slept, answers = Clock(), list[float](), [error(429, RateLimited, headers={"retry-after": "3"}), "fine"]
    monkeypatch.setattr(attempts, "time", clock)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def go(leg: Leg) -> str:
        answer: GatewayError | str = answers.pop(0) if leg.deployment_id == 1 else error(401)
        if leg.deployment_id == 2:
            clock.now += 3
        if isinstance(answer, GatewayError):
            raise answer
        return answer

    monkeypatch.setattr(attempts.asyncio, "sleep", sleep)
    assert await trip(leg(1), leg(2)).run(go) == "fine"
    assert len(slept) == 1 and slept[0] <= 0.5  # the jitter alone
