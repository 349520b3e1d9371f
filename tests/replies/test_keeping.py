"""When an answer cannot be kept: who asked gets it all the same, and nobody is charged twice."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from django.db import DataError, OperationalError, connections
from django.http import HttpResponse
from django.test import AsyncClient

from apiv1 import chat
from gateway import pipeline
from gateway.catalogue.models import Model
from gateway.errors import STOPPED, GatewayError
from gateway.ledger.desk import Desk
from gateway.ledger.models import UsageRecord
from gateway.replies import claim, claims, once, production, running, thread
from gateway.replies.models import KeptReply
from tests.apiv1.conftest import acme, bearer, client, house, issued, key, models, ring, secret, visitor

__all__ = ["acme", "bearer", "client", "house", "issued", "key", "models", "ring", "secret", "visitor"]
HELLO = {"model": "acme-chat", "messages": [{"role": "user", "content": "Hello there"}]}
Post = Callable[..., Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "RETRY_SECONDS", 0.02)


@pytest.fixture
def post(client: AsyncClient, bearer: dict[str, str], models: dict[str, Model]) -> Iterator[Post]:
    async def send(*, stream: bool = False, key: str = "k-1") -> Any:
        body = json.dumps({**HELLO, "stream": stream}).encode()
        headers = {**bearer, "idempotency-key": key}
        return await client.post("/v1/chat/completions", body, content_type="application/json", headers=headers)

    yield send
    thread.threads.submit(connections.close_all).result()


async def said(response: Any) -> bytes:
    """The whole body; of a stream, once it has ended."""
    return b"".join([part async for part in response]) if response.streaming else response.content


def forget(request: Any, events: AsyncIterator[bytes], *rest: Any) -> Any:
    """In the place of event_stream: the client has left before its stream was read."""
    return HttpResponse(status=204)


def failing(times: int, error: Exception) -> Callable[..., Any]:
    """claims.keep, which fails so often before it works."""
    left = [times]

    def keep(*args: Any) -> bool:
        if left[0]:
            left[0] -= 1
            raise error
        return real(*args)

    real = claims.keep
    return keep


async def records() -> int:
    return await thread.run(0, UsageRecord.objects.count)


async def states() -> list[str]:
    return await thread.run(0, lambda: list(KeptReply.objects.values_list("state", flat=True)))


@pytest.mark.parametrize("stream", [False, True])
async def test_the_database_is_away_for_a_while(post: Post, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    """The answer comes, and is kept when it is back; until then nobody runs the request a second time."""
    away, keep = threading.Event(), claims.keep
    away.set()

    def fail(*args: Any) -> bool:
        if away.is_set():
            raise OperationalError("the database is away")
        return keep(*args)

    monkeypatch.setattr(claims, "keep", fail)
    first = await said(await post(stream=stream))
    assert b"Hello" in first
    assert await states() == ["running"]
    away.clear()
    again = await post(stream=stream)
    assert again["idempotent-replayed"] == "true"
    assert await said(again) == first
    assert await records() == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_the_database_refuses_is_not_kept(
    post: Post, monkeypatch: pytest.MonkeyPatch, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(claims, "keep", failing(1, DataError("it does not like it")))
    assert b"Hello" in await said(await post(stream=stream))
    assert "cannot be kept" in caplog.text
    again = await post(stream=stream)  # it was charged: not once more under this key
    assert (again.status_code, again.json()["error"]["code"]) == (409, "idempotency_answer_lost")
    assert again["x-should-retry"] == "false"
    assert await records() == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_stops_before_it_has_kept_an_answer_frees_no_key(
    post: Post, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """The request is in the books: who repeats it is told that the answer is lost, once this process has ended."""
    keeping = asyncio.Event()

    async def keep(*args: Any) -> None:
        keeping.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(claim.Claim, "keep", keep)
    asking = asyncio.create_task(read_whole(post, stream))
    await keeping.wait()
    for task in running.tasks:
        task.cancel(STOPPED)
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.gather(*running.tasks, return_exceptions=True)
    assert await states() == ["running"]
    assert await records() == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_stops_while_an_answer_is_booked_frees_no_key(
    post: Post, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    booking = asyncio.Event()
    settle = Desk.settle

    def settled(*facts: Any) -> asyncio.Future[Any]:
        settle(*facts)
        booking.set()
        return asyncio.get_running_loop().create_future()  # as slow as a database may be

    monkeypatch.setattr(Desk, "settle", settled)
    asking = asyncio.create_task(read_whole(post, stream))
    await booking.wait()
    for task in running.tasks:
        task.cancel(STOPPED)
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.gather(*running.tasks, return_exceptions=True)
    assert await states() == ["running"]


async def read_whole(post: Post, stream: bool) -> bytes:
    return await said(await post(stream=stream))


async def test_a_claim_is_given_up_when_the_database_is_back(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """The upstream failed, and then the database: the key must not stay in use."""

    async def fail(call: Any) -> bytes:
        raise GatewayError("no")

    left = [4]

    def release(*args: Any) -> None:
        left[0] -= 1
        if left[0] > 0:
            raise OperationalError("the database is away")
        real(*args)

    real = claims.release
    monkeypatch.setattr(claims, "release", release)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "complete", fail)
        assert (await post()).status_code == 500
    await running.finished()
    assert await states() == []
    assert (await post()).status_code == 200


async def test_the_database_is_away_when_the_key_is_looked_up(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(*args: Any) -> None:
        raise OperationalError("the database is away")

    monkeypatch.setattr(claims, "take", take)
    refused = await post()
    assert (refused.status_code, refused["retry-after"]) == (503, "2")
    assert await records() == 0


def hanging(monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """claims.take, which has its claim, sets the first event, and returns when the second is set."""
    begun, go = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    real = claims.take

    def take(*args: Any) -> Any:
        found = real(*args)
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(60)
        return found

    monkeypatch.setattr(claims, "take", take)
    return begun, go


async def test_a_database_that_hangs_is_a_503_and_leaves_no_claim(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once, "LOOK_UP_SECONDS", 0.1)
    with monkeypatch.context() as patch:
        _, go = hanging(patch)
        refused = await post()
        assert (refused.status_code, refused["retry-after"]) == (503, "2")
        go.set()
        await running.finished()
    assert await states() == []
    monkeypatch.undo()
    assert (await post()).status_code == 200


async def test_a_client_that_leaves_while_the_key_is_looked_up_leaves_no_claim(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = hanging(monkeypatch)
    asking = asyncio.create_task(post())
    await begun.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    go.set()
    await running.finished()
    assert await states() == []
    assert await records() == 0


async def test_a_stream_that_nobody_ever_read_is_made_all_the_same(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client left between the stream's opening and the first read: nothing closes it then but its collector."""
    with monkeypatch.context() as patch:
        patch.setattr(chat, "event_stream", forget)
        assert (await post(stream=True)).status_code == 204
    await running.finished()
    assert (await post(stream=True))["idempotent-replayed"] == "true"
    assert await records() == 1


async def test_a_large_one_that_nobody_ever_read_does_not_wait_for_ever(
    post: Post, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.IDEMPOTENCY_MAX_BYTES = 50
    with monkeypatch.context() as patch:
        patch.setattr(chat, "event_stream", forget)
        assert (await post(stream=True)).status_code == 204
    await asyncio.wait_for(running.finished(), 20)
    assert await states() == ["too_large"]


@pytest.mark.parametrize(
    ("stream", "sse", "whole", "patience"), [(True, 10, 45, 5), (True, 4, 45, 2), (False, 4, 3, 1.5), (True, 0, 9, 5)]
)
def test_who_waits_for_an_answer_is_told_before_a_keep_alive_says_200(
    stream: bool, sse: int, whole: int, patience: float, settings: Any
) -> None:
    settings.SSE_KEEP_ALIVE_SECONDS, settings.WHOLE_KEEP_ALIVE_SECONDS = sse, whole
    assert once._patience_s(stream) == patience


async def test_switched_off_the_header_is_ignored(post: Post, settings: Any) -> None:
    settings.IDEMPOTENCY_HOURS = 0
    for _ in range(2):
        assert "idempotent-replayed" not in await post()
    assert await states() == []
    assert await records() == 2


async def test_only_our_headers_that_stay_true_are_kept(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pipeline.complete

    async def complete(call: Any) -> bytes:
        answer = await real(call)
        call.headers |= {"x-counterfoil-max-tokens": "7", "x-ratelimit-remaining-requests": "3", "set-cookie": "a=b"}
        return answer

    monkeypatch.setattr(production.pipeline, "complete", complete)
    await post()
    again = await post()
    assert again["x-counterfoil-max-tokens"] == "7"
    assert not {"set-cookie", "x-ratelimit-remaining-requests"} & {name.lower() for name in again.headers}


async def test_a_long_answer_is_written_in_pieces(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "PIECE", 10)
    first = await said(await post(stream=True))
    again = await post(stream=True)
    parts = [part async for part in again]
    assert b"".join(parts) == first
    assert {len(part) for part in parts[:-1]} == {10}
