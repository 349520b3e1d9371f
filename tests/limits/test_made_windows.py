"""Counters that are made in the middle of their windows, while requests run that they have to count."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.ledger.items import Item
from gateway.ledger.verification import verify
from gateway.limits.models import LimitRule
from tests.limits.processes import Process, process, settlement
from tests.limits.test_shard_races import ask, budget, connection_run, end_all, rows, settle, verdicts

__all__ = ["ask", "budget", "process"]

MakeRule = Callable[..., LimitRule]
Start = Callable[[int], Process]
Admission = Callable[..., Item]


@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("per", ["minute", "day"])
def test_a_request_from_before_the_limit_may_end_in_the_batch_that_makes_its_counter(
    process: Start, ask: Admission, rule: MakeRule, shard: int, per: str
) -> None:
    """Admitted before there was a limit: the counter has what it held, and gets it back."""
    one = process(shard)
    older = ask(one, 20)
    (answer,) = one.decide(older)
    mine = rule(metric="tokens", per=per, amount=99)
    item = ask(one, 1, whole=True)
    assert verdicts(one.call(item, settlement(older, answer, tokens=7, charge=7))) == ["ok", "ok"]
    assert verify().drift == []
    if per == "day":
        assert sum(row.used for row in rows(mine).values()) == 7
        assert sum(row.held for row in rows(mine).values()) == 1
    end_all(one, item)
    assert verify().drift == []


@pytest.mark.parametrize("together", [False, True])
def test_what_is_held_while_a_counter_is_made_anew_is_given_back_to_its_first_row(
    process: Start, ask: Admission, budget: LimitRule, together: bool
) -> None:
    """Which has all that is held, whichever row had lent it before. Also in the batch that makes the counter."""
    one, two = process(1), process(2)
    items = [ask(one, 20), ask(two, 10)]
    answers = one.decide(items[0]) + two.decide(items[1])
    connection_run("SELECT limits_forget(%s, NULL)", budget.pk)
    again, ending = ask(one, 1, whole=True), settlement(items[0], answers[0], tokens=7, charge=7)
    if together:
        assert verdicts(one.call(again, ending)) == ["ok", "ok"]
    else:
        assert verdicts(one.call(again) + one.call(ending)) == ["ok", "ok"]
    assert {shard: (row.held, row.used) for shard, row in rows(budget).items()} == {0: (10, 7), 1: (1, 0)}
    other = ask(two, 1)
    assert verdicts(two.decide(other)) == ["ok"]
    settle(two, items[1], answers[1], 5)
    end_all(one, again, other)
    assert {shard: (row.held, row.used) for shard, row in rows(budget).items()} == {0: (0, 12), 1: (0, 0), 2: (0, 0)}
    assert verify().drift == []
