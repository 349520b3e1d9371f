"""gateway.upstreams.openai, not streaming: what is sent, and what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from gateway.errors import UpstreamError
from gateway.upstreams.base import Face, Target, Usage
from gateway.upstreams.openai import OpenAIAdapter
from tests import upstream_scripts as scripts
from tests.upstream import Upstream
from tests.upstreams.conftest import FACE, REQUEST

MakeTarget = Callable[..., Target]


async def test_the_request_is_forwarded_as_it_came(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget
) -> None:
    request: dict[str, Any] = {
        "model": "acme-chat",
        "messages": [{"role": "user", "content": "hé", "unknown": {"kept": [1]}}],
        "temperature": 0.5,
        "logit_bias": {"50256": -100},
        "seed": None,
        "stream": False,
        "stream_options": None,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    }
    before = json.dumps(request)
    await adapter.complete(target("theirs-2026"), request, FACE)
    [served] = upstream.served
    sent = {name: value for name, value in request.items() if name not in ("seed", "stream", "stream_options")}
    assert served.body == sent | {"model": "theirs-2026"}
    assert served.headers["authorization"] == "Bearer sk-provider-secret"
    assert served.headers["content-type"] == "application/json"
    assert "cookie" not in served.headers
    assert json.dumps(request) == before, "the caller's request is left alone"


async def test_without_a_credential_no_authorization_is_sent(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget
) -> None:
    await adapter.complete(target(credential="", base_url=upstream.url + "/"), REQUEST, FACE)
    assert "authorization" not in upstream.served[0].headers


async def test_the_answer_is_openais(adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget) -> None:
    top = {
        "provider": "Acme",
        "system_fingerprint": "vllm-1",
        "timings": {},
        "service_tier": "default",
        "prompt_logprobs": None,
    }
    upstream.queue(
        scripts.Answer("Hi.", choice={"stop_reason": None, "matched_stop": 2}, top=top, message={"tool_calls": []})
    )
    answer = await adapter.complete(target(), REQUEST, FACE)
    body = json.loads(answer.body)
    assert body == {
        "id": "chatcmpl-ours",
        "object": "chat.completion",
        "created": 1_800_000_000,
        "model": "acme-chat",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi.", "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 1,
            "total_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        "service_tier": "default",
    }
    assert answer.usage == Usage(input_tokens=7, output_tokens=1)
    ChatCompletion.model_validate(body, strict=True)


@pytest.mark.parametrize("theirs", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize("ours", ["reasoning", "reasoning_content", "both"])
async def test_reasoning_gets_the_models_name(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget, theirs: str, ours: str
) -> None:
    upstream.queue(scripts.Answer("Hi.", message={theirs: "hm"}))
    answer = await adapter.complete(target(), REQUEST, Face("c", 1, "m", reasoning_field=ours))
    message = json.loads(answer.body)["choices"][0]["message"]
    found = {name: message.get(name) for name in ("reasoning", "reasoning_content")}
    assert found == {name: "hm" if ours in (name, "both") else None for name in found}
    assert list(message).index("content") > 1


async def test_tool_calls_are_completed(adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget) -> None:
    calls = [
        {"function": {"name": "f", "arguments": {"x": 1}}},
        {"id": "call_1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    upstream.queue(scripts.Answer("", message={"tool_calls": calls}, choice={"finish_reason": None}))
    answer = await adapter.complete(target(), REQUEST, FACE)
    choice = json.loads(answer.body)["choices"][0]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"
    first, second = choice["message"]["tool_calls"]
    assert first["id"].startswith("call_") and first["type"] == "function"
    assert first["function"] == {"name": "f", "arguments": '{"x":1}'}
    assert second == calls[1]


async def test_several_choices(adapter: OpenAIAdapter, target: MakeTarget) -> None:
    answer = await adapter.complete(target(), REQUEST | {"n": 3}, FACE)
    assert [choice["index"] for choice in json.loads(answer.body)["choices"]] == [0, 1, 2]
    assert answer.usage == Usage(input_tokens=7, output_tokens=6)


@pytest.mark.parametrize("top", [{}, {"usage": None}, {"usage": {"prompt_tokens": "many"}}, {"usage": []}])
async def test_missing_usage_is_estimated(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget, top: dict[str, Any]
) -> None:
    upstream.queue(scripts.Answer("hello world", usage=False, top=top))
    answer = await adapter.complete(target(), REQUEST, FACE)
    assert answer.usage.estimated
    assert answer.usage.output_tokens == 2
    assert json.loads(answer.body)["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    "script",
    [
        scripts.html(502),
        scripts.html(200),
        scripts.truncated(),
        scripts.drop,
        scripts.error(500, "acme-llm-7.example.com died"),
        scripts.body(b'{"choices": ['),
        scripts.body(b""),
        scripts.body([]),
        scripts.body({}),
        scripts.body({"choices": []}),
        scripts.body({"choices": [None]}),
        scripts.body({"choices": {"a": 1}}),
        scripts.body({"error": {"message": "no", "code": 429}}),
        scripts.body({"choices": [{"message": {"content": "x"}, "finish_reason": "error"}]}),
        scripts.Raw((b"\xff\xfe",), headers={"content-type": "application/json"}),
        scripts.Raw(status=302, headers={"location": "http://127.0.0.1:1/elsewhere"}),
        scripts.Raw(headers={"content-encoding": "gzip"}, parts=(b"not gzip",)),
        scripts.Raw(headers={"x-large": "x" * 70_000}),
    ],
)
async def test_what_is_no_answer_is_502(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget, script: scripts.Script
) -> None:
    upstream.queue(script)
    with pytest.raises(UpstreamError) as caught:
        await adapter.complete(target(), REQUEST, FACE)
    assert caught.value.status == 502
    assert "acme" not in caught.value.message
    assert (await adapter.complete(target(), REQUEST, FACE)).usage.total, "the next request is served"
    assert len(upstream.served) == 2


ODD_MESSAGES: list[object] = [
    None,
    {},
    [],
    "text",
    {"content": 3, "tool_calls": "x"},
    {"content": [{"text": None}, 4]},
    {"tool_calls": [{}, None, {"function": {"name": 3, "arguments": None}}], "role": 5, "audio": 3},
    {"function_call": "f", "annotations": 5, "refusal": {}, "reasoning": ["x"]},
]


@pytest.mark.parametrize("message", ODD_MESSAGES)
async def test_odd_messages_never_raise_anything_else(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget, message: object
) -> None:
    choice = {"index": "x", "message": message, "finish_reason": [], "logprobs": 1}
    upstream.queue(scripts.body({"choices": [choice], "usage": "x", "service_tier": {}, "system_fingerprint": 5}))
    body = json.loads((await adapter.complete(target(), REQUEST, FACE)).body)
    ChatCompletion.model_validate(body, strict=True)


async def test_llama_cpps_usage_of_several_choices_is_estimated(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget
) -> None:
    upstream.queue(scripts.Answer("one two three", top={"timings": {}, "usage": scripts.usage_of(REQUEST, 3)}))
    answer = await adapter.complete(target(), REQUEST | {"n": 2}, FACE)
    assert answer.usage.estimated and answer.usage.output_tokens == 6


async def test_an_endless_body_is_cut_off(
    adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.upstreams.response.LARGEST_ANSWER", 10_000)
    upstream.queue(scripts.Raw((b" " * 5_000,) * 1_000, headers={"content-type": "application/json"}))
    with pytest.raises(UpstreamError):
        await adapter.complete(target(), REQUEST, FACE)
    assert await asyncio.to_thread(upstream.served[0].ended.wait, 60)


async def test_large_requests_go_through(adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget) -> None:
    request = {"messages": [{"role": "user", "content": "x" * 3_000_000}]}
    await adapter.complete(target(), request, FACE)
    assert upstream.served[0].body["messages"] == request["messages"]


async def test_half_surrogates_go_through(adapter: OpenAIAdapter, upstream: Upstream, target: MakeTarget) -> None:
    await adapter.complete(target(), {"messages": [{"role": "user", "content": "\ud83d"}]}, FACE)
    assert upstream.served[0].body["messages"][0]["content"] == "\ud83d"
