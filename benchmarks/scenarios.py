"""What is measured. `load` are arguments of load.c, `mock` settings of mock.c."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    load: str
    mock: Mapping[str, int] = field(default_factory=dict)

    @property
    def streaming(self) -> bool:
        return "-s" in self.load.split()


ONE = Scenario("c1", "1 in flight", "-c 1")
SIXTEEN = Scenario("c16", "16 in flight", "-c 16")
SIXTY_FOUR = Scenario("c64", "64 in flight", "-c 64")
# 6,400 chunks a second are offered, below saturation: CPU per chunk means something.
PACED = Scenario("paced64", "64 streams, a chunk every 10 ms", "-s -c 64", {"interval_us": 10_000})
MAIN = (ONE, SIXTEEN, SIXTY_FOUR, PACED)
TWO_FIFTY_SIX = Scenario("c256", "256 in flight", "-c 256")
LIMITED = (ONE, SIXTEEN, SIXTY_FOUR, TWO_FIFTY_SIX)  # spread over two servers
COMMIT_DELAY = (ONE, SIXTEEN, SIXTY_FOUR)
# 64,000 chunks a second are offered: more than one process relays, so its event loop never rests.
SATURATION = Scenario("smax", "64 streams, a chunk every ms", "-s -c 64", {"interval_us": 1_000})


@dataclass(frozen=True)
class Plan:
    """How long each part takes."""

    rounds: int
    seconds: float
    limits_rounds: int
    limits_seconds: float
    desk_seconds: float
    warm: float = 0.4
    most_s: float = 190.0  # then no further round begins

    def seconds_of(self, scenario: Scenario) -> float:
        """A stream lasts a second: a shorter run would see none begin."""
        return max(1.2, self.seconds) if scenario.streaming else self.seconds


DEFAULT = Plan(rounds=3, seconds=2.2, limits_rounds=3, limits_seconds=1.2, desk_seconds=0.9)
QUICK = Plan(rounds=1, seconds=0.6, limits_rounds=1, limits_seconds=0.6, desk_seconds=0.4, warm=0.3)
