from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import AsyncClient

from gateway.catalogue.models import Deployment, Model, Price, Provider
from gateway.failover import attempts, legs
from gateway.failover.board import Board
from gateway.failover.load import Load
from gateway.upstreams import addresses, registry
from tests.apiv1 import conftest as wire
from tests.cast import admin, browser, finance
from tests.upstream import Upstream

acme, bearer, client, globex, house, issued, key, models, ring, secret, visitor = (
    wire.acme,
    wire.bearer,
    wire.client,
    wire.globex,
    wire.house,
    wire.issued,
    wire.key,
    wire.models,
    wire.ring,
    wire.secret,
    wire.visitor,
)

__all__ = ["admin", "browser", "finance"]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Board:
    """A process that has called nobody yet."""
    board = Board()
    for module in (attempts, legs):
        monkeypatch.setattr(module, "board", board)
    return board


@pytest.fixture(autouse=True)
def process_loads(monkeypatch: pytest.MonkeyPatch) -> defaultdict[int, Load]:
    loads: defaultdict[int, Load] = defaultdict(Load)
    for module in (attempts, legs):
        monkeypatch.setattr(module, "loads", loads)
    return loads


@pytest.fixture(scope="session")
def one_upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(one_upstream: Upstream) -> Iterator[Upstream]:
    one_upstream.reset()
    before = addresses.rules()
    addresses.configure(allow_private=False, allow_loopback=True)
    yield one_upstream
    addresses.configure(allow_private=before.allow_private, allow_loopback=before.allow_loopback)


@pytest.fixture
def provider(house: None, upstream: Upstream) -> Provider:
    return Provider.objects.create(name="acme-llm", base_url=upstream.url, credential="sk-provider")


@pytest.fixture
def served(provider: Provider) -> Callable[..., Model]:
    """served("acme-chat", "first", "second", …): a model whose n-th deployment has priority n, unless said."""

    def make(public_id: str, *deployments: str | dict[str, Any], price: int = 10**9, **facts: Any) -> Model:
        model = Model.objects.create(public_id=public_id, **facts)
        for number, given in enumerate(deployments):
            stated = {"upstream_model": given} if isinstance(given, str) else given
            Deployment.objects.create(**{"model": model, "provider": provider, "priority": number, **stated})
        since = datetime(2026, 1, 1, tzinfo=UTC)
        Price.objects.create(model=model, currency="USD", input=price, output=price, effective_from=since)
        return model

    return make


@pytest.fixture
async def ask(client: AsyncClient, bearer: dict[str, str]) -> AsyncIterator[Any]:
    async def ask(**changes: Any) -> Any:
        body = {"model": "acme-chat", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20, **changes}
        return await client.post("/v1/chat/completions", body, content_type="application/json", headers=bearer)

    yield ask
    await registry.close_all()


@pytest.fixture
def deployment(db: None) -> Deployment:
    provider = Provider.objects.create(name="acme-llm", base_url="http://127.0.0.1:9100/v1", credential="sk-theirs")
    model = Model.objects.create(public_id="acme-chat")
    return Deployment.objects.create(model=model, provider=provider, upstream_model="acme-chat-2026-01")
