"""When a deployment is called and when it is left alone. No I/O and no clock: `now` is given, in seconds that grow.

    closed     called. FAILURES in a row open it at once, and so does an error rate above RATE among RESULTS
               or more of the last WINDOW_S seconds.
    open       left alone, for FIRST_OPEN_S; twice as long with each probe that fails, up to LONGEST_OPEN_S.
    half-open  one request may try it, if it claims the probe: a success closes (and forgets), a failure opens again.

Two things lie over that: a rest that the provider asked for (`retry-after`), and the switch of an administrator.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum

from gateway.failover.witnesses import Witnesses

FAILURES = 5
RATE = 0.5
RESULTS = 20
WINDOW_S = 30
FIRST_OPEN_S = 5.0
LONGEST_OPEN_S = 60.0
CLAIM_S = 30.0  # a probe of which nothing is heard any more: another may be made
LONGEST_REST_S = 600.0  # a provider that asks for more is asked again after this
PROBED_S = 1.0  # what we say while a probe runs: nobody knows when it ends, mostly soon
FORCED_S = 60.0  # what we say of a deployment that a person took out, since nobody knows


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    RESTING = "resting"  # called only where nobody else can be: the provider asked for a pause


class Forced(StrEnum):
    """An administrator's switch."""

    NO = ""
    OPEN = "open"  # taken out of rotation
    CLOSED = "closed"  # called whatever happens


def open_seconds(openings: int) -> float:
    """How long the n-th opening in a row lasts; n from 1."""
    return float(min(FIRST_OPEN_S * 2 ** (min(openings, 16) - 1), LONGEST_OPEN_S))


class Results:
    """Good and bad answers of the last WINDOW_S seconds, by whole seconds, and the failures in a row."""

    __slots__ = ("_slot", "_slots", "bad", "cut_in_a_row", "good", "in_a_row")

    def __init__(self) -> None:
        self.good = self.bad = self.in_a_row = self.cut_in_a_row = 0
        self._slot = [-1, 0, 0]  # the present one: second, good, bad
        self._slots: deque[list[int]] = deque()

    def add_good(self, now: float) -> None:
        second = int(now)
        if self._slot[0] != second:
            self._turn(second)
        self._slot[1] += 1
        self.good += 1
        self.in_a_row = self.cut_in_a_row = 0

    def add_bad(self, now: float, *, cut: bool = False, flowing: int = 0) -> str:
        """Why the breaker must open now, or an empty text. What flows has not failed, or only slow answers would."""
        second = int(now)
        if self._slot[0] != second:
            self._turn(second)
        self._slot[2] += 1
        self.bad += 1
        self.in_a_row += 1
        self.cut_in_a_row += cut
        if self.in_a_row >= FAILURES:
            return f"{self.in_a_row} failures in a row"
        total = self.good + self.bad + flowing
        if total >= RESULTS and self.bad > RATE * total:
            return f"{self.bad} of {total} requests failed in {WINDOW_S} s"
        return ""

    @property
    def last(self) -> float:
        """The second of the last of them; -1 if there was none."""
        return self._slot[0]

    def counted(self, now: float) -> tuple[int, int]:
        """Good and bad ones of the window."""
        self._drop(int(now))
        return self.good, self.bad

    def _turn(self, second: int) -> None:
        self._slot = [second, 0, 0]
        self._slots.append(self._slot)
        self._drop(second)

    def _drop(self, second: int) -> None:
        while self._slots and self._slots[0][0] <= second - WINDOW_S:
            _, good, bad = self._slots.popleft()
            self.good -= good
            self.bad -= bad


class Breaker:
    """Of one deployment, as one process knows it."""

    __slots__ = (
        "calm",
        "claimed_at",
        "claimed_until",
        "flowing",
        "forced",
        "mine",
        "open",
        "open_until",
        "openings",
        "reason",
        "rest_until",
        "results",
        "untold",
        "witnesses",
    )

    def __init__(self) -> None:
        self.results = Results()
        self.witnesses = Witnesses()
        self.calm = True  # nothing is wrong: what the request path asks first
        self.forced = Forced.NO
        self.rest_until = 0.0
        self.untold = 0  # news of it that is on its way to the other processes
        self.flowing = 0  # streams that have begun
        self._close()

    # ---- what it says ----

    def state(self, now: float) -> State:
        if self.calm:
            return State.CLOSED
        if self.forced:
            return State.OPEN if self.forced is Forced.OPEN else State.CLOSED
        if self.open:
            return State.OPEN if now < max(self.open_until, self.claimed_until, self.rest_until) else State.HALF_OPEN
        if now < self.rest_until:
            return State.RESTING
        self.calm = True
        return State.CLOSED

    def opens_in(self, now: float) -> float:
        """Seconds until it may be called or probed; 0 when it may."""
        if self.state(now) not in (State.OPEN, State.RESTING):
            return 0.0
        if self.forced:
            return FORCED_S
        if not self.open:
            return self.rest_until - now
        return max(self.rest_until, self.open_until, self.claimed_until) - now

    def retry_in(self, now: float) -> float:
        """As `opens_in`, for a client: a probe that runs is mostly over soon, whatever its claim says."""
        probed = self.open and max(self.rest_until, self.open_until) <= now < self.claimed_until
        return min(self.opens_in(now), PROBED_S) if probed and not self.forced else self.opens_in(now)

    # ---- what requests tell it ----

    def began(self) -> None:
        """A stream's first byte is there, which is no failure. Whether it is a success its end will tell: of the
        failures in a row those remain that were streams which broke."""
        self.flowing += 1
        self.results.in_a_row = self.results.cut_in_a_row

    def over(self) -> None:
        self.flowing = max(0, self.flowing - 1)  # one that began before this breaker is not counted

    def succeeded(self, now: float, *, probe: bool = False, tenant: int = 0) -> bool:
        """Whether that closed it. What began before it opened says nothing of now, and changes nothing."""
        if tenant:
            self.witnesses.served(tenant, now)
        if self.calm:
            self.results.add_good(now)
            return False
        if self.forced:
            return False
        if not self.open:
            self.results.add_good(now)
            return False
        if probe:
            self.close()
        return probe

    def failed(self, now: float, kind: str, *, probe: bool = False, tenant: int = 0) -> bool:
        """Whether that opened it (again). A tenant (0: nobody's) alone opens none that others are answered by."""
        if self.forced:
            return False
        if self.open:
            if not (probe and (self.mine or now >= self.claimed_until)):
                return False
            self._open(now, self.openings + 1, f"the probe failed: {kind}")
            return True
        self.witnesses.failed(tenant, now)
        reason = self.results.add_bad(now, cut=kind == "cut", flowing=self.flowing)
        if reason and kind != "connect" and self.witnesses.doubtful(now):
            return False
        if reason:
            self._open(now, 1, f"{reason}, the last: {kind}")
        return bool(reason)

    def rest(self, now: float, seconds: float) -> bool:
        """Not called for so long, because the provider said so. Whether that is news."""
        until = now + min(seconds, LONGEST_REST_S)
        if until <= max(now, self.rest_until):
            return False
        self.rest_until, self.calm = until, False
        return True

    def claim(self, now: float) -> bool:
        """Half-open only: the one who gets True makes the probe, and tells how it went."""
        if self.state(now) is not State.HALF_OPEN:
            return False
        self.claimed_at, self.claimed_until, self.mine = now, now + CLAIM_S, True
        return True

    def renew(self, now: float, *, below: float, longest: float) -> bool:
        """Our probe still runs: whether its claim was made longer, which it is when less than `below` s are left."""
        if self.claimed_until - now >= below or now - self.claimed_at >= longest:
            return False
        self.claimed_until = now + CLAIM_S
        return True

    def lose(self, until: float) -> None:
        """Another process makes the probe. Nobody here asks again before then."""
        self.claimed_until, self.mine = until, False

    def abandon(self) -> bool:
        """The probe ended without a word on the deployment. Whether it was ours."""
        mine, self.mine = self.mine, False
        if mine:
            self.claimed_until = 0.0
        return mine

    # ---- what is heard from elsewhere ----

    def adopt(
        self,
        now: float,
        *,
        open: bool,
        openings: int,
        reason: str,
        forced: Forced,
        open_s: float,
        probe_s: float,
        rest_s: float,
    ) -> None:
        """What all processes know of it, in seconds from now; `probe_s` is of another process's claim, 0 without."""
        if self.forced and not forced:
            self.close()
        self.forced = forced
        self.rest_until = now + rest_s if rest_s > 0 else 0.0
        if open:
            self.open, self.openings, self.reason = True, openings, reason
            self.open_until = now + open_s
            if probe_s > 0:
                self.lose(now + probe_s)
            elif not self.mine:
                self.claimed_until = 0.0
        elif self.open:
            self.close()
        self.calm = not (self.open or self.forced or self.rest_until)

    def clear(self) -> None:
        """Nothing is wrong with it any more: of what opened it all is forgotten."""
        if self.open or self.forced:
            self.close()
        self.forced, self.rest_until, self.calm = Forced.NO, 0.0, True

    def close(self) -> None:
        """All is forgotten but a rest and the switch."""
        self.results = Results()
        self._close()
        self.calm = not (self.forced or self.rest_until)

    def _close(self) -> None:
        self.open = self.mine = False
        self.openings = 0
        self.open_until = self.claimed_until = self.claimed_at = 0.0
        self.reason = ""

    def _open(self, now: float, openings: int, reason: str) -> None:
        self.open, self.calm, self.mine = True, False, False
        self.openings = openings
        self.open_until = now + open_seconds(openings)
        self.claimed_until = 0.0
        self.reason = reason
