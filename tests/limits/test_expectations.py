"""What an answer is expected to be long: by the key's own answers, of this process or in the ledger."""

from __future__ import annotations

from typing import Any

from asgiref.sync import sync_to_async

from gateway.ledger.desk import Desk
from gateway.ledger.habits import last_outputs
from gateway.ledger.items import Ending
from gateway.limits.expectations import ENOUGH, SAMPLES, UNKNOWN, Expectations
from gateway.upstreams.base import Usage
from tenants.models import APIKey

AGENT = 128_000


def test_nothing_is_known_at_first() -> None:
    found = Expectations()
    assert (found.expect(1, 1, AGENT), found.expect(1, 1, 500), found.expect(1, 1, 0)) == (UNKNOWN, 500, UNKNOWN)


def test_it_learns_a_high_percentile_and_forgets_what_is_old() -> None:
    found = Expectations()
    for output in [500] * (ENOUGH - 1) + [700]:
        found.learn(1, 1, output)
    assert found.expect(1, 1, AGENT) == 700
    for output in [500] * 63 + [60_000]:
        found.learn(1, 1, output)
    assert found.expect(1, 1, AGENT) == 500  # one in 64 is not to be expected
    assert found.expect(1, 2, AGENT) == found.expect(2, 1, AGENT) == UNKNOWN


def test_it_remembers_the_ledger_and_what_it_saw_itself() -> None:
    found = Expectations()
    for _ in range(ENOUGH):
        found.learn(1, 1, 900)
    found.remember(1, [(1, 500)] * SAMPLES + [(2, 40)] * ENOUGH)
    assert (found.expect(1, 1, AGENT), found.expect(1, 2, AGENT)) == (900, 40)


async def test_the_ledger_has_the_last_answers_of_a_key(desk: Desk, order: Any, acme: APIKey, globex: APIKey) -> None:
    mine = [await sync_to_async(order)() for _ in range(3)]
    for number, one in enumerate(mine):
        await desk.admit(one)
        status = "completed" if number < 2 else "interrupted"
        await desk.settle(one, Ending(status, Usage(10, 0, 0, 100 + number, 7)))
    model = mine[0].catalogue_model_id
    assert await sync_to_async(last_outputs)(acme.pk) == [(model, 107), (model, 108)]
    assert await sync_to_async(last_outputs)(globex.pk) == []
