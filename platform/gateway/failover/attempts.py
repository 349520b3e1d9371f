"""The calls to providers that one request makes: one after the other, until one answers or there is no more to try.

Who may be asked comes as legs, in order of preference (routing); what a failure means is decided in `retries`, who
is healthy by the board. Nothing here is a query, but for a probe of a deployment that was open and for a move
between deployments that have limits of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import TypeVar

from gateway.errors import GatewayError, InternalError, InvalidRequest
from gateway.failover.board import State, board
from gateway.failover.legs import Leg, resting_last, unavailable
from gateway.failover.load import loads
from gateway.failover.retries import Fault, fault_of, wait_s
from gateway.ledger.items import Attempt
from gateway.telemetry import metrics, traces
from gateway.telemetry.spans import Leg as Span
from gateway.upstreams.base import Usage

T = TypeVar("T")
_random = Random()


Move = Callable[[Leg], Awaitable[bool]]


class Trip:
    """The attempts of one request. `run` until something answers; then `ended`, once, when the answer has."""

    def __init__(
        self,
        legs: Sequence[Leg],
        *,
        first: Leg,
        stream: bool,
        most: int,
        within_s: float,
        move: Move | None,
        tenant: int = 0,
    ) -> None:
        self._legs, self._first, self._stream, self._tenant = legs, first, stream, tenant
        self._most, self._within_s, self._move = most, within_s, move
        self._began = time.monotonic()
        self._leg: Leg | None = None  # being tried
        self._leg_began = 0.0
        self._probe = False
        self._span: Span | None = None
        self._first_byte_ms: int | None = None
        self._faults: dict[int, tuple[Fault, float]] = {}  # the last one and when, by deployment
        self.abandoned = False  # a provider was being asked when nobody waited any more
        self.done: list[Attempt] = []

    async def run(self, go: Callable[[Leg], Awaitable[T]]) -> T:
        """What `go` returns for the first leg that answers. Raises what the last one raised; who is cancelled here
        says so (`left`), and why.
        """
        leg: Leg | None = self._first
        told: tuple[GatewayError, str] | None = None  # what went wrong first, at which model
        if not await self._enter(self._first):
            leg = await self._next()
        if leg is None:
            raise unavailable(
                self._legs, "The model is not available at the moment: its providers fail. Please try again."
            )
        while True:
            try:
                answer = await go(leg)
            except GatewayError as exc:
                self._failed(fault_of(exc), exc)
                following = await self._next()
                told = told or (exc, leg.model)
                if following is None and _of_a_stand_in(exc, leg.model, *told):
                    raise told[0] from exc
                if following is None:
                    raise
                leg = following
            except Exception:
                self._failed(Fault("internal"), InternalError())
                raise
            else:
                self._answered()
                return answer

    # ---- ends of an attempt ----------------------------------------------------------------------------------

    def _answered(self) -> None:
        assert self._leg is not None
        deployment_id, now = self._leg.deployment_id, time.monotonic()
        took_s = now - self._leg_began
        self._first_byte_ms = _milliseconds(now - self._began)
        loads[deployment_id].succeeded(_milliseconds(took_s), stream=self._stream)
        if self._span is not None:
            self._span.answered(took_s)
        if self._probe or not self._stream:  # a stream has yet to show that it does not break
            board.succeeded(deployment_id, probe=self._probe, tenant=self._tenant)
        if self._stream:
            board.began(deployment_id)
        self._probe = False

    def _failed(self, fault: Fault, exc: GatewayError) -> None:
        leg = self._leave(fault.outcome, exc.upstream_status or (200 if fault.blame == "cut" else 0))
        load = loads[leg.deployment_id]
        if fault.here or fault.blame:
            load.failed()
        first_time = leg.deployment_id not in self._faults  # one request is one witness, however often it tries
        if fault.blame and (first_time or self._probe):
            board.failed(leg.deployment_id, fault.blame, probe=self._probe, tenant=self._tenant)
        elif self._probe and fault.well:
            board.succeeded(leg.deployment_id, probe=True, tenant=self._tenant)
        elif self._probe:
            board.abandoned(leg.deployment_id)
        if fault.rest_s:
            board.rest(leg.deployment_id, fault.rest_s)
        self._probe = False
        self._faults[leg.deployment_id] = fault, time.monotonic()

    def left(self, outcome: str) -> None:
        """Nobody waits any more, before the first byte: the client has gone, or the server stops."""
        if self._leg is not None:
            self.abandoned = True
            leg = self._leave(outcome, 0)
            if self._probe:
                board.abandoned(leg.deployment_id)

    def ended(self, outcome: str, usage: Usage | None = None) -> None:
        """The attempt that answered has ended: `ok`, or midway (`cut`: the provider's fault; `internal`: ours)."""
        if self._leg is not None:
            leg = self._leave(outcome, 200, usage)
            if self._stream:
                board.over(leg.deployment_id)
            if outcome == "cut":
                loads[leg.deployment_id].failed()
                board.failed(leg.deployment_id, "cut", tenant=self._tenant)
            elif self._stream and outcome != "internal":
                board.succeeded(leg.deployment_id, tenant=self._tenant)

    def _leave(self, outcome: str, http_status: int, usage: Usage | None = None) -> Leg:
        """`http_status` is the provider's own; 0: none came."""
        leg, self._leg = self._leg, None
        assert leg is not None
        deployment_id, provider_id, now = leg.deployment_id, leg.provider_id, time.monotonic()
        loads[deployment_id].in_flight -= 1
        metrics.attempt_ended(
            provider=provider_id, deployment_id=deployment_id, outcome=outcome, seconds=now - self._leg_began
        )
        if self._span is not None:
            self._span.end(outcome, http_status=http_status, usage=usage)
            self._span = None
        self.done.append(
            Attempt(
                number=len(self.done) + 1,
                deployment_id=deployment_id,
                provider_id=provider_id,
                model=leg.model,
                started_ms=_milliseconds(self._leg_began - self._began),
                first_byte_ms=self._first_byte_ms,
                ended_ms=_milliseconds(now - self._began),
                outcome=outcome,
                http_status=http_status,
            )
        )
        return leg

    # ---- the next attempt --------------------------------------------------------------------------------------

    async def _next(self) -> Leg | None:
        """The leg of the next attempt, entered; None: there is none, or no time."""
        if len(self.done) >= self._most:
            return None
        if self.done and not self._faults[self.done[-1].deployment_id][0].again:
            return None
        untried = [leg for leg in self._legs if leg.deployment_id not in self._faults]
        for leg in resting_last(untried):
            if await self._enter(leg):
                return leg
        return await self._again()

    async def _again(self) -> Leg | None:
        """One that has failed before, after a wait; the one that can be asked soonest."""
        waits, now = [], time.monotonic()
        for leg in self._legs:
            if (known := self._faults.get(leg.deployment_id)) is None:
                continue
            fault, failed_at = known
            if fault.waits and loads[leg.deployment_id].may_retry:
                passed = now - failed_at  # while others were asked
                waits.append((max(0.0, wait_s(len(self.done), fault, _random) - passed), leg))
        for wait, leg in sorted(waits, key=lambda found: found[0]):
            if time.monotonic() - self._began + wait > self._within_s:
                return None
            if board.state(leg.deployment_id) is not State.OPEN:
                await asyncio.sleep(wait)
                if await self._enter(leg):
                    return leg
        return None

    async def _enter(self, leg: Leg) -> bool:
        """False if this one cannot be asked now."""
        deployment_id = leg.deployment_id
        state = board.state(deployment_id)
        probe = state is State.HALF_OPEN
        if state is State.OPEN or (probe and not await board.claim_probe(deployment_id)):
            return False
        entered = False
        try:
            entered = (not self.done or self._may_follow(deployment_id)) and await self._moved(leg)
        finally:
            if probe and not entered:
                board.abandoned(deployment_id)
        if not entered:
            return False
        self._leg, self._leg_began, self._probe = leg, time.monotonic(), probe
        self._first_byte_ms = None
        self._span = traces.attempt(leg.placement.target)
        loads[deployment_id].begun()
        return True

    def _may_follow(self, deployment_id: int) -> bool:
        in_time = time.monotonic() - self._began <= self._within_s
        return in_time and loads[deployment_id].may_retry

    async def _moved(self, leg: Leg) -> bool:
        """The hold is where the attempt is made, within the deployment's own limits. The desk put it at the first."""
        return self._move is None or (leg is self._first and not self.done) or await self._move(leg)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _of_a_stand_in(exc: GatewayError, model: str, first: GatewayError, asked: str) -> bool:
    """A request that another model or protocol does not take is not wrong: the first might have taken it."""
    if not isinstance(exc, InvalidRequest) or isinstance(first, InvalidRequest):
        return False
    return model != asked or exc.upstream_status is None
