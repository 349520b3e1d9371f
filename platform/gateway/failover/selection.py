"""In which order a model's deployments are asked. Pure: what is known of them comes in, an order goes out.

A priority is a group: a later one is asked only when nobody of the earlier ones can answer. Inside a group the
model's strategy decides, or a sticky key if there is one. A deployment without weight is its group's last.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from itertools import groupby
from random import Random
from typing import NamedTuple

WEIGHTED, LEAST_BUSY, LOWEST_COST, LOWEST_LATENCY = "weighted", "least_busy", "lowest_cost", "lowest_latency"


class Candidate(NamedTuple):
    """A deployment, as far as the choice is concerned. None: not known."""

    deployment_id: int
    priority: int
    weight: int
    in_flight: int = 0
    latency_ms: float | None = None  # to the first byte, lately; infinite: somebody is finding it out
    cost: tuple[str, int] | None = None  # currency, nano-units that this request would cost us


Rank = Callable[[Candidate], float]


def ordered(
    candidates: Sequence[Candidate], *, strategy: str, random: Random, sticky_key: str = ""
) -> list[Candidate]:
    """All of them, the one to ask first in front."""
    found: list[Candidate] = []
    for _, members in groupby(sorted(candidates, key=lambda c: c.priority), key=lambda c: c.priority):
        group = shuffled(list(members), random)
        if sticky_key:
            # All of them, not the first alone: when that one goes, its keys stay together at the second.
            group.sort(key=lambda c: affinity(c, sticky_key), reverse=True)
        elif strategy != WEIGHTED:
            group.sort(key=_rank(strategy, group))  # stable: equals stay in their drawn order
        found += group
    return found


def shuffled(group: list[Candidate], random: Random) -> list[Candidate]:
    """Drawn one after the other, each with the chance that its weight gives it among those that are left."""
    if len(group) == 1:
        return group

    def lot(candidate: Candidate) -> tuple[bool, float]:
        # Efraimidis and Spirakis: the order of u^(1/weight) is that of drawing without putting back.
        return candidate.weight > 0, math.log(random.random() or 1e-300) / (candidate.weight or 1)

    return sorted(group, key=lot, reverse=True)


def affinity(candidate: Candidate, key: str) -> float:
    """How much this key belongs there: the same in every process (rendezvous hashing), more with more weight."""
    if not candidate.weight:
        return -math.inf
    digest = hashlib.blake2b(f"{candidate.deployment_id}:{key}".encode(errors="replace"), digest_size=8).digest()
    return math.log((int.from_bytes(digest) + 1) / 2**64) / candidate.weight


def _rank(strategy: str, group: Sequence[Candidate]) -> Rank:
    if strategy == LEAST_BUSY:
        return lambda c: (c.in_flight + 1) / c.weight if c.weight else math.inf
    if strategy == LOWEST_COST:
        # Amounts of different currencies cannot be compared: those in another than the oldest's come last. Not the
        # first's, since the group has been shuffled.
        currency = min(((c.deployment_id, c.cost[0]) for c in group if c.weight and c.cost), default=(0, ""))[1]
        return lambda c: c.cost[1] if c.weight and c.cost is not None and c.cost[0] == currency else math.inf
    if strategy == LOWEST_LATENCY:
        # One that has not been heard of lately is asked first, or nobody would ever hear of it again; by one request,
        # or all who come meanwhile would wait with it.
        return lambda c: (c.latency_ms or 0.0) if c.weight else math.inf
    raise ValueError(f"no strategy is called {strategy!r}")
