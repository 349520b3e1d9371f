"""OpenAI's client through a whole server to providers that speak something else; and what is in the books then."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from django.conf import settings

from gateway.embedded import engines, layout
from tests.clients.conftest import Shop
from tests.house import House
from tests.servers import running_server
from tests.upstream import Upstream
from tests.upstreams.fakes.fake import Fake, events
from tests.upstreams.fakes.spoken import MODELS, STREAMS, WEATHER, running_fakes

PRICE = '[{effective_from: 2026-01-01, currency: USD, input: "4", cached_input: "1", cache_write: "5", output: "8"}]'
PROTOCOLS = ("azure", "anthropic", "gemini")
BOOKED = {  # uncached, cached, written, output, reasoning
    "azure": (4, 16, 0, 9, 0),
    "anthropic": (25, 300, 100, 15, 0),
    "gemini": (10, 30, 0, 12, 0),
}
THOUGHT = BOOKED | {"anthropic": (25, 300, 100, 9, 6), "gemini": (10, 30, 0, 12, 8)}
CLASSES = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]


@dataclass
class Trade:
    shop: Shop
    fakes: dict[str, Fake]
    client: openai.OpenAI

    def booked(self, request_id: str | None) -> tuple[str, tuple[int, ...], int]:
        """(status, tokens by class, charge in nano-units) of the record of a request."""
        row = self.shop.record(request_id)
        return row["status"], tuple(row[name] for name in CLASSES), row["charge"]


@pytest.fixture(scope="module")
def trade(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trade]:
    engines.ensure(settings.COUNTERFOIL_HOME)
    sockets = layout.sockets(settings.COUNTERFOIL_HOME)
    with running_fakes() as fakes:
        keys = {f"KEY_OF_{name.upper()}": fake.key for name, fake in fakes.items()}
        house = House(tmp_path_factory.mktemp("house"), sockets, f"protocols_{os.getpid()}", keys)
        house.create()
        try:
            house.apply(_catalogue(fakes))
            secret = house.manage("issue_key", "--tenant", "acme", "--name", "laptop").strip()
            with running_server(house.environment) as server:
                url = f"{server}/v1"
                with openai.OpenAI(base_url=url, api_key=secret, max_retries=0, timeout=30) as client:
                    yield Trade(Shop(house, server, secret, Upstream()), fakes, client)
        finally:
            house.drop()


def _catalogue(fakes: dict[str, Fake]) -> str:
    lines = ["providers:"]
    for name, fake in fakes.items():
        reached = f'base_url: "{fake.url}", credential: $KEY_OF_{name.upper()}'
        lines.append(f"  - {{name: {name}, protocol: {name}, {reached}}}")
    lines.append("models:")
    for name in fakes:
        served = f"[{{provider: {name}, upstream_model: {MODELS[name]}}}]"
        lines.append(f"  - {{id: acme-{name}, deployments: {served}, prices: {PRICE}}}")
    lines.append(
        f"  - {{id: acme-thinker, deployments: [{{provider: azure, upstream_model: gpt-5}}], prices: {PRICE}}}"
    )
    return "\n".join([*lines, "tenants:", '  - {slug: acme, name: Acme, currency: USD, models: ["acme*"]}', ""])


def charge(booked: tuple[int, ...]) -> int:
    """In nano-units, at the prices per million above; reasoning costs what output costs."""
    return sum(count * price * 1000 for count, price in zip(booked, (4, 1, 5, 8, 8), strict=True))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_answer(trade: Trade, protocol: str) -> None:
    effort: Any = {"reasoning_effort": "low"} if protocol != "azure" else {}
    answer = trade.client.chat.completions.create(model=f"acme-{protocol}", messages=HELLO, **effort)
    message = answer.choices[0].message
    assert (message.content, answer.choices[0].finish_reason) == ("Hello there.", "stop")
    assert answer.model == f"acme-{protocol}"
    if protocol != "azure":
        assert message.model_extra is not None and message.model_extra["reasoning"] == "The user greets me."
    booked = THOUGHT[protocol]
    assert trade.booked(answer._request_id) == ("completed", booked, charge(booked))
    assert answer.usage is not None and answer.usage.total_tokens == sum(booked)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_stream(trade: Trade, protocol: str) -> None:
    chat = trade.client.chat.completions
    raw = chat.with_raw_response.create(
        model=f"acme-{protocol}", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(raw.parse())
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Hello there."
    booked = BOOKED[protocol]
    assert trade.booked(raw.headers["x-request-id"]) == ("completed", booked, charge(booked))
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == sum(booked)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_loop_with_a_tool(trade: Trade, protocol: str) -> None:
    """The client's own accumulator reads the call from the stream; its answer goes back as it is."""
    chat, asked = trade.client.chat.completions, list(HELLO)
    tools: Any = [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]
    with chat.stream(model=f"acme-{protocol}", messages=asked, tools=tools) as stream:
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
    call = choice.message.tool_calls[0]
    assert json.loads(call.function.arguments) == {"location": "Paris, FR"}
    asked += [
        choice.message.model_dump(exclude={"parsed"}, exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"},
    ]
    answer = chat.create(model=f"acme-{protocol}", messages=asked, tools=tools)
    assert answer.choices[0].message.content == "Hello there."
    assert trade.booked(answer._request_id)[:2] == ("completed", BOOKED[protocol])


@pytest.mark.parametrize("protocol", ["anthropic", "gemini"])
def test_what_cannot_be_said_is_refused_and_costs_nothing(trade: Trade, protocol: str) -> None:
    before = len(trade.fakes[protocol].served)
    with pytest.raises(openai.BadRequestError) as refused:
        trade.client.chat.completions.create(model=f"acme-{protocol}", messages=HELLO, logprobs=True)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "logprobs")
    assert refused.value.type == "invalid_request_error"
    assert len(trade.fakes[protocol].served) == before
    status, booked, charged = trade.booked(refused.value.response.headers["x-request-id"])
    assert (status, sum(booked), charged) == ("failed", 0, 0)


def test_a_model_that_refuses_the_cap_that_we_set_answers_all_the_same(trade: Trade) -> None:
    """Reasoning models know no `max_tokens`; here it is the server's own, and no client can take it away."""
    served = trade.fakes["azure"].served
    before = len(served)
    for _ in range(2):
        answer = trade.client.chat.completions.create(model="acme-thinker", messages=HELLO)
        assert answer.choices[0].message.content == "Hello there."
        assert trade.booked(answer._request_id)[:2] == ("completed", BOOKED["azure"])
    assert ["max_tokens" in request.body for request in served[before:]] == [True, False, False]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_stream_that_breaks_is_booked_as_delivered(trade: Trade, protocol: str) -> None:
    sent = STREAMS[protocol][:-2] if protocol != "gemini" else STREAMS[protocol][:1]
    if protocol == "azure":
        sent = sent[:-1]
    trade.fakes[protocol].queue(events(*sent, cut=True))
    raw = trade.client.chat.completions.with_raw_response.create(
        model=f"acme-{protocol}", messages=HELLO, stream=True
    )
    with pytest.raises(openai.APIError):
        list(raw.parse())
    status, booked, charged = trade.booked(raw.headers["x-request-id"])
    assert status == "interrupted" and 0 < sum(booked[3:]) < 9 and charged == charge(booked)
    assert booked[:3] == {"anthropic": (25, 300, 100), "gemini": (40, 0, 0)}.get(protocol, booked[:3])
