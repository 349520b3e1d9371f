"""OpenAI's AsyncOpenAI: many at once, streams, a task that is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.clients.conftest import Shop
from tests.upstream_scripts import Stream, hang, words

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello there"}]


@pytest.fixture
async def caller(shop: Shop) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=shop.base_url, api_key=shop.secret, max_retries=0, timeout=30) as client:
        yield client


async def test_it_answers_many_at_once(shop: Shop, caller: openai.AsyncOpenAI) -> None:
    served = shop.serve()
    answers = await asyncio.gather(
        *(caller.chat.completions.create(model="acme-chat", messages=HELLO) for _ in range(40))
    )
    assert {answer.choices[0].message.content for answer in answers} == {"Hello there."}
    assert len({answer.id for answer in answers}) == len({answer._request_id for answer in answers}) == 40
    assert len(served()) == 40


async def test_it_streams_many_at_once(shop: Shop, caller: openai.AsyncOpenAI) -> None:
    shop.upstream.script("chat-v1", Stream(words(25), interval=0.002))

    async def stream() -> str:
        chunks = await caller.chat.completions.create(model="acme-chat", messages=HELLO, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    assert set(await asyncio.gather(*(stream() for _ in range(20)))) == {"".join(words(25))}


async def test_it_refuses(caller: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await caller.chat.completions.create(model="nobody", messages=HELLO)
    assert "acme-chat" in [model.id async for model in caller.models.list()]


async def test_a_cancelled_task_stops_the_provider(shop: Shop, caller: openai.AsyncOpenAI) -> None:
    served = shop.serve(hang)
    task = asyncio.create_task(caller.chat.completions.create(model="acme-chat", messages=HELLO, user="cancelled"))
    while not served():
        await asyncio.sleep(0.01)
    task.cancel()
    assert await asyncio.to_thread(served()[0].ended.wait, 60)
    assert served()[0].outcome == "gone"
