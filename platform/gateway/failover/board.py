"""The health of every deployment as this process knows it: a look into memory, whatever happens elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gateway.failover.breaker import Breaker, State

__all__ = ["Board", "State", "board"]


class Board:
    """One per process. Every method but `start` and `stop` is for the event loop's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._breakers: dict[int, Breaker] = {}

    def state(self, deployment_id: int) -> State:
        breaker = self._breakers.get(deployment_id)
        return State.CLOSED if breaker is None or breaker.calm else breaker.state(self._clock())

    def opens_in(self, deployment_id: int) -> float:
        """Seconds until it may be called or probed; 0 when it may."""
        breaker = self._breakers.get(deployment_id)
        return 0.0 if breaker is None or breaker.calm else breaker.opens_in(self._clock())

    async def claim_probe(self, deployment_id: int) -> bool:
        """HALF_OPEN only: True for one caller among all processes, who then tells how it went."""
        breaker = self._breakers.get(deployment_id)
        return breaker is not None and breaker.claim(self._clock())

    def succeeded(self, deployment_id: int, *, probe: bool = False) -> None:
        self._of(deployment_id).succeeded(self._clock(), probe=probe)

    def failed(self, deployment_id: int, kind: str, *, probe: bool = False) -> None:
        self._of(deployment_id).failed(self._clock(), kind, probe=probe)

    def abandoned(self, deployment_id: int) -> None:
        """A probe whose client left: another may be made."""
        self._of(deployment_id).abandon()

    def rest(self, deployment_id: int, seconds: float) -> None:
        """The provider asked to be left alone for so long (retry-after). No probe is needed after that."""
        self._of(deployment_id).rest(self._clock(), seconds)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Share with the other processes from now on."""

    async def stop(self) -> None:
        """Publish what is left, give probes back."""

    def _of(self, deployment_id: int) -> Breaker:
        breaker = self._breakers.get(deployment_id)
        if breaker is None:
            breaker = self._breakers[deployment_id] = Breaker()
        return breaker


board = Board()
