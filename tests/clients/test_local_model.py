"""A real model, really generating: SmolLM2 behind the same path as any provider."""

from __future__ import annotations

import time
from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from gateway.embedded import children, model
from gateway.embedded.local_model import LocalModel
from tests.clients.conftest import UNIT_PRICE, Shop

pytestmark = pytest.mark.skipif(model.weights() is None, reason="no local model for this platform")

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
CATALOGUE = """\
providers:
  - {{name: local, protocol: openai, base_url: "{local.base_url}", credential: $LOCAL_MODEL_KEY}}
models:
  - {{id: local-chat, deployments: [{{provider: local, upstream_model: {name}}}], prices: {price}}}
"""


@pytest.fixture(scope="module")
def local_model(open_shop: Shop) -> Iterator[str]:
    local = LocalModel(open_shop.house.folder)
    local.log.parent.mkdir(exist_ok=True)
    process = local.start()
    try:
        for _ in range(3000):
            if local.answers():
                break
            assert process.poll() is None, local.log.read_text()
            time.sleep(0.1)
        # The server is running: it must learn of the new model by itself.
        open_shop.house.environment["LOCAL_MODEL_KEY"] = local.key
        open_shop.house.apply(CATALOGUE.format(local=local, name=model.NAME, price=UNIT_PRICE))
        yield "local-chat"
    finally:
        process.kill()
        process.wait()
        children.end_session(process)


def test_it_answers(shop: Shop, client: openai.OpenAI, local_model: str) -> None:
    answer = client.chat.completions.create(model=local_model, messages=ASK, max_tokens=16, temperature=0)
    assert len(str(answer.choices[0].message.content).split()) > 1  # it is too small to know that it is Paris
    assert answer.model == local_model
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 16
    record = shop.record(answer._request_id)
    assert (record["status"], record["estimated"]) == ("completed", False)
    booked = sum(record[name] for name in ("input_tokens", "cached_input_tokens", "output_tokens"))
    assert booked == answer.usage.total_tokens


def test_it_streams(shop: Shop, client: openai.OpenAI, local_model: str) -> None:
    with client.chat.completions.create(
        model=local_model, messages=ASK, max_tokens=16, temperature=0, stream=True
    ) as stream:
        chunks = list(stream)
    assert len("".join(chunk.choices[0].delta.content or "" for chunk in chunks).split()) > 1
    assert len(chunks) > 4
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    record = shop.record(stream.response.headers["x-request-id"])
    assert (record["status"], record["estimated"]) == ("completed", False)


def test_it_stops_generating_when_the_client_leaves(shop: Shop, client: openai.OpenAI, local_model: str) -> None:
    with client.chat.completions.create(
        model=local_model, messages=ASK, max_tokens=1500, temperature=0, stream=True
    ) as stream:
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
    record = shop.record(stream.response.headers["x-request-id"])
    assert (record["status"], record["estimated"]) == ("interrupted", True)
    assert 0 < record["output_tokens"] < 1500
