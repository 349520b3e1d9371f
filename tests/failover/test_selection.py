"""In which order deployments are asked: pure, so that chance can be weighed."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.failover.selection import Candidate, ordered

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.integers(1, 9),
        st.integers(0, 2),
        st.integers(0, 3),
        st.integers(0, 5),
        st.none() | st.floats(0, 1000) | st.just(math.inf),
        st.none() | st.tuples(st.sampled_from(["USD", "EUR"]), st.integers(0, 100)),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda candidate: candidate.deployment_id,
)
STRATEGIES = st.sampled_from(["weighted", "least_busy", "lowest_cost", "lowest_latency"])


@given(CANDIDATES, STRATEGIES, st.sampled_from(["", "a conversation"]), st.randoms(use_true_random=False))
def test_nobody_is_lost_and_priorities_hold(
    candidates: list[Candidate], strategy: str, key: str, random: Random
) -> None:
    found = ordered(candidates, strategy=strategy, random=random, sticky_key=key)
    assert sorted(found) == sorted(candidates, key=lambda c: c.deployment_id) or Counter(found) == Counter(candidates)
    assert [candidate.priority for candidate in found] == sorted(candidate.priority for candidate in candidates)


@given(CANDIDATES, STRATEGIES, st.randoms(use_true_random=False))
def test_one_without_weight_is_its_groups_last(candidates: list[Candidate], strategy: str, random: Random) -> None:
    found = ordered(candidates, strategy=strategy, random=random)
    for priority in {candidate.priority for candidate in found}:
        weights = [bool(candidate.weight) for candidate in found if candidate.priority == priority]
        assert weights == sorted(weights, reverse=True)


def test_weights_share_the_first_place() -> None:
    random, firsts = Random(7), Counter[int]()
    for _ in range(6000):
        firsts[
            ordered([Candidate(1, 0, 1), Candidate(2, 0, 2), Candidate(3, 0, 3)], strategy="weighted", random=random)[
                0
            ][0]
        ] += 1
    assert [round(firsts[number] / 1000) for number in (1, 2, 3)] == [1, 2, 3]


def test_the_least_busy_is_measured_by_its_weight() -> None:
    found = ordered(
        [Candidate(1, 0, 1, in_flight=3), Candidate(2, 0, 10, in_flight=9), Candidate(3, 0, 1, in_flight=2)],
        strategy="least_busy",
        random=Random(1),
    )
    assert [candidate.deployment_id for candidate in found] == [2, 3, 1]


def test_the_cheapest_comes_first_and_the_unknown_last() -> None:
    costs = {1: ("USD", 30), 2: None, 3: ("USD", 10), 4: ("USD", 20)}
    found = ordered(
        [Candidate(number, 0, 1, cost=cost) for number, cost in costs.items()],
        strategy="lowest_cost",
        random=Random(1),
    )
    assert [candidate.deployment_id for candidate in found] == [3, 4, 1, 2]


def test_the_fastest_comes_first_after_who_was_not_heard_of_lately() -> None:
    latencies = {1: 30.0, 2: None, 3: 10.0}
    found = ordered(
        [Candidate(number, 0, 1, latency_ms=ms) for number, ms in latencies.items()],
        strategy="lowest_latency",
        random=Random(1),
    )
    assert [candidate.deployment_id for candidate in found] == [2, 3, 1]


def test_costs_in_two_currencies_are_in_one_order_every_time() -> None:
    costs = {1: None, 2: ("USD", 30), 3: ("EUR", 10), 4: ("USD", 20), 5: ("EUR", 5)}
    group = [Candidate(number, 0, 1, cost=cost) for number, cost in costs.items()]
    for seed in range(30):
        found = ordered(group, strategy="lowest_cost", random=Random(seed))
        assert [candidate.deployment_id for candidate in found][:2] == [4, 2]


def test_one_that_somebody_is_finding_out_about_is_not_waited_for() -> None:
    latencies = {1: math.inf, 2: 30.0, 3: 20.0}
    group = [Candidate(number, 0, 1, latency_ms=ms) for number, ms in latencies.items()]
    found = ordered(group, strategy="lowest_latency", random=Random(1))
    assert [candidate.deployment_id for candidate in found] == [3, 2, 1]


@pytest.mark.parametrize("strategy", ["weighted", "least_busy", "lowest_latency"])
def test_where_nobody_has_weight_all_have_the_same(strategy: str) -> None:
    group, random = [Candidate(number, 0, 0) for number in (1, 2, 3)], Random(5)
    firsts = Counter(ordered(group, strategy=strategy, random=random)[0].deployment_id for _ in range(600))
    assert min(firsts[number] for number in (1, 2, 3)) > 150


def orders(group: list[Candidate], keys: list[str]) -> dict[str, list[int]]:
    found = {key: ordered(group, strategy="weighted", random=Random(), sticky_key=key) for key in keys}
    return {key: [candidate.deployment_id for candidate in order] for key, order in found.items()}


def test_a_key_keeps_its_deployment_and_only_its_own_keys_move_when_one_goes() -> None:
    group = [Candidate(number, 0, 1) for number in range(1, 5)]
    keys = [f"conversation {number}" for number in range(400)]
    before, after = orders(group, keys), orders(group[1:], keys)
    assert min(Counter(order[0] for order in before.values()).values()) > 60  # all have their share
    assert {key for key in keys if after[key][0] != before[key][0]} == {key for key in keys if before[key][0] == 1}
    # They move to where they would have gone anyway had the first not answered, and spread over all that are left.
    assert all(after[key] == [number for number in before[key] if number != 1] for key in keys)
    assert len({after[key][0] for key in keys if before[key][0] == 1}) == 3


def test_a_sticky_key_wins_over_the_strategy_within_a_priority_alone() -> None:
    group = [Candidate(1, 0, 1, in_flight=9), Candidate(2, 0, 1), Candidate(3, 1, 1)]
    key = next(key for key, order in orders(group[:2], [str(n) for n in range(100)]).items() if order[0] == 1)
    found = ordered(group, strategy="least_busy", random=Random(1), sticky_key=key)
    assert [candidate.deployment_id for candidate in found] == [1, 2, 3]


def test_an_unknown_strategy_is_a_defect() -> None:
    with pytest.raises(ValueError, match="round_robin"):
        ordered([Candidate(1, 0, 1), Candidate(2, 0, 1)], strategy="round_robin", random=Random(1))
