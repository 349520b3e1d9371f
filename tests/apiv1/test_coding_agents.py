"""Coding agents ask for 128,000 tokens and use 500: a budget that holds what is expected is there to its end."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db.models import Sum
from django.test import AsyncClient

from gateway import snapshots
from gateway.catalogue.models import Model
from gateway.ledger.decisions import unpack
from gateway.ledger.models import UsageRecord
from gateway.limits.expectations import expectations
from gateway.limits.models import LimitRule, Refusal
from gateway.upstreams.echo import EchoAdapter
from tenants.models import Tenant

PRICE = 1_000  # nano-units of a token, of either side
TOKENS = 1_010  # of a request, about: half in, half out
BUDGET = 80 * TOKENS
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {
    "model": "acme-chat",
    "messages": [{"role": "user", "content": "code " * 500}],
    "max_tokens": 128_000,
}


class Agents:
    """So many at once, who stop when the budget refuses them."""

    def __init__(self, client: AsyncClient, bearer: dict[str, str]) -> None:
        self.client, self.bearer = client, bearer
        self.refused = 0

    async def work(self, agents: int, *, requests: int = 1_000) -> None:
        self.left = requests
        await asyncio.gather(*(self._agent() for _ in range(agents)))

    async def _agent(self) -> None:
        while self.left > 0:
            self.left -= 1
            response = await self.client.post(CHAT, BODY, content_type="application/json", headers=self.bearer)
            if response.status_code == 429:
                self.refused += 1
                return
            assert response.status_code == 200, response.content


@pytest.fixture(params=[(1, 0.0), (30, 0.3)], ids=["one", "thirty"])
def agents(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many; where they are many, an answer takes so long that all of them ask before the first has it."""
    many, seconds = request.param
    answer = EchoAdapter.complete

    async def later(self: EchoAdapter, *args: Any) -> Any:
        await asyncio.sleep(seconds)
        return await answer(self, *args)

    monkeypatch.setattr(EchoAdapter, "complete", later)
    return int(many)


@pytest.fixture
def new_process(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it, and nothing is known any more of what was used before."""

    def start() -> None:
        monkeypatch.setattr(expectations, "_seen", OrderedDict())
        snapshots.forget()

    start()
    return start


def room_at_refusals(budget: LimitRule, flight: LimitRule) -> float:
    """The most that there was for who was refused, in tokens, had everybody held what he then used."""
    rooms = []
    for refusal in Refusal.objects.all():
        rows = {row.rule_id: row for row in unpack(refusal.decided)}
        used = rows[budget.pk].used / (PRICE if budget.metric == "spend" else 1)
        rooms.append(BUDGET - used - TOKENS * (rows[flight.pk].held + 1))
    return max(rooms)


async def spent() -> int:
    total = await sync_to_async(lambda: UsageRecord.objects.aggregate(Sum("charge")))()
    return int(total["charge__sum"] or 0)


@pytest.mark.parametrize("metric", ["spend", "tokens"])
async def test_they_work_until_the_budget_is_near_its_end(
    client: AsyncClient,
    bearer: dict[str, str],
    models: dict[str, Model],
    acme: Tenant,
    new_process: Any,
    agents: int,
    metric: str,
) -> None:
    fields: dict[str, Any] = {"metric": "tokens", "per": "day", "amount": BUDGET}
    if metric == "spend":
        fields = {"metric": "spend", "per": "month", "currency": "USD", "amount": BUDGET * PRICE}
    create = sync_to_async(LimitRule.objects.create)
    budget = await create(tenant=acme, **fields)
    flight = await create(tenant=acme, metric="in_flight", per="", amount=1, mode="observe")
    team = Agents(client, bearer)
    await team.work(agents, requests=60)
    assert team.refused == 0
    new_process()
    await team.work(agents)
    assert team.refused == agents
    assert await sync_to_async(room_at_refusals)(budget, flight) <= 0.05 * BUDGET
    assert 0.95 * BUDGET <= await spent() / PRICE <= 1.05 * BUDGET
