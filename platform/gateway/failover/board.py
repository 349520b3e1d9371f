"""The health of every deployment as this process knows it: a look into memory, whatever happens elsewhere.

What requests find out counts here at once; a thread (`sharing`) tells the other processes, and brings what they and
the administrators have to say, twice a second. Without `start`, or with the database away, it is this process's own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gateway.failover import circuits
from gateway.failover.breaker import Breaker, State
from gateway.failover.circuits import Author, Trouble
from gateway.failover.sharing import POLL_S, News, Sharer
from gateway.telemetry import metrics

__all__ = ["Board", "State", "board"]

CLAIM_PATIENCE_S = 1.0  # then the probe is made without having asked
RENEW_BELOW_S = 20.0
LONGEST_PROBE_S = 120.0  # a probe that takes longer no longer keeps others from trying
COUNT_EVERY_S = 5.0
FORGOTTEN_AFTER_S = 600  # a deployment of which nothing was heard: disabled perhaps
TOLD_REST_S = 10.0  # shorter rests are not in the history
STOP_S = 5.0


class Board:
    """One per process. Every method but `start` and `stop` is for the event loop's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._breakers: dict[int, Breaker] = {}
        self._sharer: Sharer | None = None
        self._next_count = 0.0
        self._counted: set[int] = set()
        self._said: dict[int, State] = {}  # what the listeners know; without those that are closed
        # Called with a deployment and its new state, whoever brought it about.
        self.listeners: list[Callable[[int, State], None]] = []

    # ---- what the request path asks and tells ----

    def state(self, deployment_id: int) -> State:
        breaker = self._breakers.get(deployment_id)
        return State.CLOSED if breaker is None or breaker.calm else breaker.state(self._clock())

    def opens_in(self, deployment_id: int) -> float:
        """Seconds until it may be called or probed; 0 when it may."""
        breaker = self._breakers.get(deployment_id)
        return 0.0 if breaker is None or breaker.calm else breaker.opens_in(self._clock())

    def retry_in(self, deployment_id: int) -> float:
        """Seconds after which a client may well try again."""
        breaker = self._breakers.get(deployment_id)
        return 0.0 if breaker is None or breaker.calm else breaker.retry_in(self._clock())

    async def claim_probe(self, deployment_id: int) -> bool:
        """HALF_OPEN only: True for one caller among all processes, who then tells how it went."""
        breaker = self._breakers.get(deployment_id)
        if breaker is None or not breaker.claim(self._clock()):
            return False
        sharer = self._sharer
        if sharer is None or sharer.down:
            return True
        try:
            won = await asyncio.wait_for(sharer.claim(deployment_id), CLAIM_PATIENCE_S)
        except TimeoutError:
            return True
        except asyncio.CancelledError:
            self.abandoned(deployment_id)
            raise
        if won is False:
            breaker.lose(self._clock() + POLL_S)
            return False
        return True

    def began(self, deployment_id: int) -> None:
        """A stream that has its first byte, until it is `over`."""
        self._of(deployment_id).began()

    def over(self, deployment_id: int) -> None:
        """It has ended; `succeeded` and `failed` say how."""
        self._of(deployment_id).over()

    def succeeded(self, deployment_id: int, *, probe: bool = False, tenant: int = 0) -> None:
        breaker = self._breakers.get(deployment_id) or self._of(deployment_id)
        if breaker.succeeded(self._clock(), probe=probe, tenant=tenant):
            self._changed(deployment_id, breaker, circuits.close, reason="the probe was good")

    def failed(self, deployment_id: int, kind: str, *, probe: bool = False, tenant: int = 0) -> None:
        breaker = self._of(deployment_id)
        was_open = breaker.open
        if breaker.failed(self._clock(), kind.replace("_", " "), probe=probe, tenant=tenant):
            write = circuits.reopen if was_open else circuits.open_it
            self._changed(deployment_id, breaker, write, reason=breaker.reason)

    def abandoned(self, deployment_id: int) -> None:
        """A probe whose client left: another may be made."""
        breaker = self._of(deployment_id)
        if breaker.abandon():
            self._tell(deployment_id, breaker, lambda author, _: circuits.abandon(author, deployment_id))

    def rest(self, deployment_id: int, seconds: float) -> None:
        """The provider asked to be left alone for so long (retry-after). No probe is needed after that."""
        breaker, now = self._of(deployment_id), self._clock()
        if breaker.rest(now, seconds):
            lasts, told = breaker.rest_until - now, seconds >= TOLD_REST_S
            self._tell(
                deployment_id,
                breaker,
                lambda author, age: circuits.rest(author, deployment_id, seconds=lasts, told=told, age=age),
            )
            self._announce(deployment_id, breaker)

    # ---- its life ----

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Share with the other processes from now on."""
        if self._sharer is None:
            self._sharer = Sharer(loop, self)
            self._sharer.start()

    async def stop(self) -> None:
        """Give probes back, publish what is left; from then on it is this process's own."""
        sharer = self._sharer
        if sharer is None:
            return
        for deployment_id, breaker in self._breakers.items():
            if breaker.mine:
                self.abandoned(deployment_id)
        self._sharer = None
        sharer.end()
        await asyncio.get_running_loop().run_in_executor(None, sharer.join, STOP_S)
        for breaker in self._breakers.values():
            breaker.untold = 0

    def forget(self) -> None:
        """For tests, which change the world under our feet."""
        self._breakers.clear()
        self._counted.clear()

    # ---- what the thread brings ----

    def told(self, deployment_id: int) -> None:
        breaker = self._breakers.get(deployment_id)
        if breaker is not None and breaker.untold:
            breaker.untold -= 1

    def hear(self, troubles: list[Trouble]) -> None:
        """All that is wrong anywhere. A breaker of which our own news is still under way is left as it is."""
        now, named = self._clock(), set()
        for trouble in troubles:
            named.add(trouble.deployment_id)
            breaker = self._of(trouble.deployment_id)
            if not breaker.untold:
                self._adopt(now, trouble, breaker)
        for deployment_id, breaker in list(self._breakers.items()):
            if not (breaker.calm or breaker.untold or deployment_id in named):
                breaker.clear()
            if not breaker.calm or deployment_id in self._said:
                self._announce(deployment_id, breaker)
        self._count(now)

    def _adopt(self, now: float, trouble: Trouble, breaker: Breaker) -> None:
        ours = self._sharer is not None and trouble.probe_by == self._sharer.author.token
        breaker.adopt(
            now,
            open=trouble.open,
            openings=trouble.openings,
            reason=trouble.reason,
            forced=trouble.forced,
            open_s=trouble.open_s,
            probe_s=0.0 if ours else trouble.probe_s,
            rest_s=trouble.rest_s,
        )
        if breaker.mine and breaker.renew(now, below=RENEW_BELOW_S, longest=LONGEST_PROBE_S):
            deployment_id = trouble.deployment_id
            self._tell(deployment_id, breaker, lambda author, _: circuits.renew(author, deployment_id))

    def _count(self, now: float) -> None:
        """Every few seconds: what failed lately, for the admin's pages; and who was not heard of is forgotten."""
        if now < self._next_count or self._sharer is None:
            return
        self._next_count = now + COUNT_EVERY_S
        counts = []
        for deployment_id, breaker in list(self._breakers.items()):
            good, bad = breaker.results.counted(now)
            if bad or deployment_id in self._counted:
                counts.append((deployment_id, good, bad))
            (self._counted.add if bad else self._counted.discard)(deployment_id)
            if breaker.calm and not breaker.flowing and now - breaker.results.last > FORGOTTEN_AFTER_S:
                del self._breakers[deployment_id]
        if counts:
            self._sharer.tell(News(0, lambda author, _: circuits.count(author, counts)))

    # ---- what it tells ----

    def _changed(self, deployment_id: int, breaker: Breaker, write: Callable[..., bool], *, reason: str) -> None:
        self._tell(
            deployment_id,
            breaker,
            lambda author, age: write(author, deployment_id, reason=reason, age=age),
        )
        self._announce(deployment_id, breaker)

    def _tell(self, deployment_id: int, breaker: Breaker, write: Callable[[Author, float], object]) -> None:
        if self._sharer is not None:
            breaker.untold += 1
            self._sharer.tell(News(deployment_id, write))

    def _announce(self, deployment_id: int, breaker: Breaker) -> None:
        state = breaker.state(self._clock())
        if state is self._said.get(deployment_id, State.CLOSED):
            return
        self._said[deployment_id] = state
        if state is State.CLOSED:
            del self._said[deployment_id]
        for listener in self.listeners:
            listener(deployment_id, state)

    def _of(self, deployment_id: int) -> Breaker:
        breaker = self._breakers.get(deployment_id)
        if breaker is None:
            breaker = self._breakers[deployment_id] = Breaker()
            if deployment_id not in self._said:
                for listener in self.listeners:  # a graph of health begins with health
                    listener(deployment_id, State.CLOSED)
        return breaker


board = Board()
board.listeners.append(metrics.breaker_changed)
