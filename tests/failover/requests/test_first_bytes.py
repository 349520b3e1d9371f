"""What a first byte, or none, means for the next attempt and for a deployment's health."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from gateway.failover.board import Board
from tests.failover.requests.test_attempts import Served, asked, books, streamed, texts
from tests.upstream import Upstream
from tests.upstream_scripts import Raw, Stream, error


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_of_which_no_byte_came_is_asked_for_elsewhere(
    upstream: Upstream, served: Served, ask: Any, stream: bool
) -> None:
    await sync_to_async(served)("acme-chat", "first", "second")
    kind = "text/event-stream" if stream else "application/json"
    upstream.script("first", Raw((), headers={"content-type": kind}))
    response = await ask(stream=stream)
    assert response.status_code == 200
    if stream:
        assert texts((await streamed(response))[0]) == "Hello there."
    assert asked(upstream) == ["first", "second"]
    _, attempts = await books()
    assert [(attempt.outcome, attempt.http_status) for attempt in attempts] == [("broken", 200), ("ok", 200)]


async def test_failures_between_streams_that_flow_are_not_in_a_row(
    upstream: Upstream, served: Served, ask: Any, nothing_known: Board
) -> None:
    model = await sync_to_async(served)("acme-chat", "only", max_attempts=1)
    deployment = await model.deployments.aget()
    streams = []
    for _ in range(6):
        upstream.queue(Stream(["one", "two"], interval=0.5), error(500))
        streams.append(asyncio.create_task(streamed(await ask(stream=True))))
        assert (await ask()).status_code == 502
    assert (await ask()).status_code == 200
    for stream in streams:
        assert (await stream)[1] is None
    breaker = nothing_known._breakers[deployment.pk]
    assert (breaker.flowing, breaker.results.good, breaker.results.bad) == (0, 7, 6)
