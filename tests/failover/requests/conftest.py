"""On a busy machine a test may take longer than what it looks at would last."""

from __future__ import annotations

import pytest

from gateway.failover import breaker, load
from tests.upstream import Upstream
from tests.upstream_scripts import Answer, Exchange, Script


@pytest.fixture(autouse=True)
def lasting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is out stays out, and who was chosen counts as chosen until its admission is over."""
    monkeypatch.setattr(breaker, "FIRST_OPEN_S", 40.0)
    monkeypatch.setattr(load, "PICKED_S", 60.0)


def together(upstream: Upstream, count: int) -> Script:
    """Answers when so many requests have come, so that they are all under way at once."""

    async def script(exchange: Exchange) -> None:
        while len(upstream.served) < count:
            await exchange.pause(0.01)
        await Answer()(exchange)

    return script
