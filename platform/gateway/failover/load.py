"""What this process knows of each deployment from its own requests: how many it has in flight, how fast it was.

In memory and of this process alone: good enough to choose by. What must be exact (a deployment's own limits) is
decided by the desk, what must be shared (health) by the board.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict

SHARE = 0.2  # of the newest measure in the average
FRESH_S = 60.0  # an older average says nothing of now
UNHEARD_S = 5.0  # how long nobody follows the one who was sent to find out how fast a deployment is
PICKED_S = 0.2  # an admission is over by then; one that was refused is forgotten

# As gRPC throttles retries: each failure takes a token, each success gives a part of one back, and nothing is tried
# again at a deployment that has less than half of them left. One that fails more than one time in six gets no more
# than its own requests. What comes back with time is for one that is only ever asked second: without any it would
# never be asked again.
TOKENS = 40.0
PER_SUCCESS = 0.2
PER_SECOND = 1 / 3


class Load:
    __slots__ = ("_at", "_latency", "_picked", "_picked_at", "_sent", "in_flight", "tokens")

    def __init__(self) -> None:
        self.in_flight = 0
        self._picked, self._picked_at = 0, 0.0
        self.tokens = TOKENS
        self._at = 0.0  # when so many were left
        self._latency: dict[bool, tuple[float, float]] = {}  # by stream: (average ms, when)
        self._sent: dict[bool, float] = {}  # by stream: when a request was last sent here first

    def busy(self, now: float) -> int:
        """In flight, and on the way there: chosen, and not admitted yet. Else all who come at once go to the same."""
        return self.in_flight + (self._picked if now - self._picked_at < PICKED_S else 0)

    def picked(self, now: float, *, stream: bool) -> None:
        self._picked = self._picked + 1 if now - self._picked_at < PICKED_S else 1
        self._picked_at = self._sent[stream] = now

    def begun(self) -> None:
        self.in_flight += 1
        self._picked = max(0, self._picked - 1)

    def latency_ms(self, *, stream: bool, now: float) -> float | None:
        average, at = self._latency.get(stream, (0.0, -FRESH_S))
        return average if now - at < FRESH_S else None

    def expected_ms(self, *, stream: bool, now: float) -> float | None:
        """As `latency_ms`, but infinite while somebody is finding it out."""
        known = self.latency_ms(stream=stream, now=now)
        if known is None and now - self._sent.get(stream, -UNHEARD_S) < UNHEARD_S:
            return math.inf
        return known

    def succeeded(self, first_byte_ms: float, *, stream: bool) -> None:
        now = time.monotonic()
        before = self.latency_ms(stream=stream, now=now)
        average = first_byte_ms if before is None else before + SHARE * (first_byte_ms - before)
        self._latency[stream] = average, now
        if self.tokens < TOKENS:
            self.tokens, self._at = min(TOKENS, self._left(now) + PER_SUCCESS), now

    def failed(self) -> None:
        now = time.monotonic()
        self.tokens, self._at = max(0.0, self._left(now) - 1), now

    @property
    def may_retry(self) -> bool:
        return self.tokens > TOKENS / 2 or self._left(time.monotonic()) > TOKENS / 2

    def _left(self, now: float) -> float:
        return min(TOKENS, self.tokens + (now - self._at) * PER_SECOND)


loads: defaultdict[int, Load] = defaultdict(Load)  # by deployment; as many as the catalogue has
