"""OpenAI's official Node package, 6.x: the last that runs on Node 20 (7.x needs 22)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.clients.conftest import Shop
from tests.clients.test_openai_tools import CALLING, CALLING_STREAM
from tests.upstream_scripts import DEFAULT, Stream, error, words

Node = Callable[..., Any]


def test_it_answers_and_streams(shop: Shop, node: Node) -> None:
    shop.serve(DEFAULT, Stream(words(40), interval=0.001))
    said = node("openai_client.mjs", PARTS="whole streamed models")
    whole = said["whole"]
    assert (whole["content"], whole["finish"], whole["model"]) == ("Hello there.", "stop", "acme-chat")
    assert (whole["usage"], whole["version"]) == (7, "2020-10-01")
    assert re.fullmatch(r"req_[0-9a-f]{32}", whole["request_id"])
    assert shop.record(whole["request_id"])["status"] == "completed"
    assert said["streamed"] == {"text": "".join(words(40)), "finish": "stop", "usage": 40, "role": "assistant"}
    assert {"acme-chat", "acme-echo", "acme/chat:7b"} <= set(said["models"]["ids"])
    assert "globex-secret" not in said["models"]["ids"]
    assert said["models"]["one"] == "acme/chat:7b"
    lost = said["models"]["lost"]
    assert (lost["kind"], lost["code"], lost["param"]) == ("NotFoundError", "model_not_found", "model")


def test_it_calls_tools(shop: Shop, node: Node) -> None:
    shop.serve(CALLING, CALLING_STREAM)
    said = node("openai_client.mjs", PARTS="toolCalls")["toolCalls"]
    assert said["whole"] == [["call_Paris", "get_weather", "Paris"], ["call_Rome", "get_weather", "Rome"]]
    assert said["content"] is None
    assert said["streamed"] == [["call_Paris", "Paris"], ["call_Rome", "Rome"]]
    assert said["finish"] == "tool_calls"


def test_it_raises_the_packages_errors(shop: Shop, node: Node) -> None:
    shop.serve(error(429, headers={"retry-after": "17"}), *[error(500)] * 3)  # a 500 is tried again
    said = node("openai_client.mjs", PARTS="errors")["errors"]
    kinds = {name: (fault["kind"], fault["status"], fault["code"]) for name, fault in said.items()}
    assert kinds == {
        "key": ("AuthenticationError", 401, "invalid_api_key"),
        "model": ("NotFoundError", 404, "model_not_found"),
        "value": ("BadRequestError", 400, "decimal_above_max_value"),
        "limit": ("RateLimitError", 429, "rate_limit_exceeded"),
        "provider": ("InternalServerError", 502, None),
    }
    assert said["value"]["param"] == "temperature"
    assert all(fault["request"] for fault in said.values())


def test_it_notices_a_stream_that_breaks_off(shop: Shop, node: Node) -> None:
    for script in (Stream(words(9), cut_after=4), Stream(words(9), error_after=4)):
        shop.serve(script)
        said = node("openai_client.mjs", PARTS="broken")["broken"]
        assert said["kind"] == "APIError"
        assert said["text"] == "".join(words(3))


def test_it_stops_the_provider_when_the_loop_is_left(shop: Shop, node: Node) -> None:
    served = shop.serve(Stream(words(3), hang_after=3))
    node("openai_client.mjs", PARTS="left")
    assert served()[0].ended.wait(60)
    assert served()[0].outcome == "gone"


def test_it_retries(shop: Shop, node: Node) -> None:
    served = shop.serve(error(429, headers={"retry-after-ms": "10"}), error(500))
    assert node("openai_client.mjs", PARTS="retried")["retried"] == "Hello there."
    assert [request.status for request in served()] == [429, 500, 200]
