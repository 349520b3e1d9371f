"""A defect of ours, while a provider answers well."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import sync_to_async

from gateway.failover.board import Board
from gateway.upstreams.relay import Relay
from tests.failover.requests.test_attempts import Served, books, streamed
from tests.upstream import Upstream


async def test_a_stream_that_we_break_is_not_an_attempt_that_went_well(
    upstream: Upstream, served: Served, ask: Any, monkeypatch: pytest.MonkeyPatch, nothing_known: Board
) -> None:
    async def stumble(self: Relay) -> None:
        raise RuntimeError("a defect of ours")

    await sync_to_async(served)("acme-chat", "first")
    monkeypatch.setattr(Relay, "__anext__", stumble)
    said, _ = await streamed(await ask(stream=True))
    assert '"error"' in said and "[DONE]" not in said
    record, attempts = await books()
    assert (record.status, record.error_code) == ("interrupted", "internal_error")
    assert [(attempt.outcome, attempt.http_status) for attempt in attempts] == [("internal", 200)]
    assert not any(results.good or results.bad for results in (b.results for b in nothing_known._breakers.values()))
    assert not any(breaker.flowing for breaker in nothing_known._breakers.values())
