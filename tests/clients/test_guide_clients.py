"""The clients of the guide, unchanged but for URL, key and model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import requests

from tests.clients.conftest import Shop
from tests.upstream_scripts import Answer, Stream, usage_of, words

MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Hello, who are you?"},
]


def test_it_answers_requests(shop: Shop) -> None:
    url = f"{shop.base_url}/chat/completions"
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {shop.secret}"}
    data = {"model": "acme-chat", "messages": MESSAGES, "temperature": 0.7, "max_tokens": 100}

    response = requests.post(url, headers=headers, json=data)
    result = response.json()

    assert response.status_code == 200
    assert result["choices"][0]["message"]["content"] == "Hello there."
    assert result["object"] == "chat.completion"
    assert result["id"].startswith("chatcmpl-")
    assert result["model"] == "acme-chat"
    assert result["choices"][0]["finish_reason"] == "stop"
    said = {name: result["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    assert said == usage_of(data, 2)


def test_it_streams_to_iter_lines(shop: Shop) -> None:
    url = f"{shop.base_url}/chat/completions"
    headers = {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {shop.secret}",
        "Accept": "text/event-stream",
    }
    data = {"model": "acme-chat", "messages": MESSAGES, "stream": True}
    shop.serve(Stream(words(40), interval=0.002))

    text, reasons, done = "", [], False
    with requests.post(url, headers=headers, json=data, stream=True) as response:
        for line in response.iter_lines():
            if line:
                decoded = line.decode("utf-8")
                assert decoded.startswith("data: ")
                payload = decoded[6:]
                if payload == "[DONE]":
                    done = True
                    break
                chunk = json.loads(payload)
                assert chunk["object"] == "chat.completion.chunk"
                content = chunk["choices"][0]["delta"].get("content", "")
                text += content
                reasons.append(chunk["choices"][0]["finish_reason"])

    assert done
    assert text == "".join(words(40))
    assert reasons[-1] == "stop"
    assert set(reasons[:-1]) == {None}


def test_it_ends_the_body_right_after_done(shop: Shop) -> None:
    """A client that reads to the end, and not to [DONE], is not left waiting."""
    data = {"model": "acme-echo", "messages": MESSAGES, "stream": True}
    with requests.post(
        f"{shop.base_url}/chat/completions",
        headers={"Authorization": f"Bearer {shop.secret}"},
        json=data,
        stream=True,
        timeout=60,
    ) as response:
        assert list(response.iter_lines())[-2:] == [b"data: [DONE]", b""]


def test_it_lists_models_and_health(shop: Shop) -> None:
    headers = {"Authorization": f"Bearer {shop.secret}", "Accept": "application/json"}
    models = requests.get(f"{shop.base_url}/models", headers=headers).json()
    assert models["object"] == "list"
    assert {"acme-chat", "acme-echo", "acme/chat:7b"} <= {model["id"] for model in models["data"]}
    assert "globex-secret" not in {model["id"] for model in models["data"]}
    assert all(set(model) == {"id", "object", "created", "owned_by"} for model in models["data"])
    health = requests.get(f"{shop.server}/health").json()
    assert health["status"] == "healthy"
    assert isinstance(health["timestamp"], int)
    assert requests.get(f"{shop.server}/", headers=headers).json()["endpoints"]["chat"] == "/v1/chat/completions"


def test_it_reports_errors_in_the_guides_form(shop: Shop) -> None:
    url = f"{shop.base_url}/chat/completions"
    headers = {"Authorization": f"Bearer {shop.secret}"}
    cases: list[tuple[int, dict[str, str], Any]] = [
        (401, {"Authorization": "Bearer sk-wrong"}, {"model": "acme-chat", "messages": MESSAGES}),
        (404, headers, {"model": "nobody", "messages": MESSAGES}),
        (400, headers, {"model": "acme-chat", "messages": []}),
        (400, headers, {"model": "acme-chat", "messages": MESSAGES, "temperature": 7}),
    ]
    for status, given, data in cases:
        response = requests.post(url, headers=given, json=data)
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert requests.get(f"{shop.server}/nowhere", headers=headers).status_code == 404


def test_it_serves_fetch(node: Callable[..., Any], shop: Shop) -> None:
    """fetch, plain and with body.getReader(), split on newlines with and without a buffer."""
    shop.upstream.script("chat-v1", Stream(words(60), interval=0.002))
    shop.serve(Answer())
    said = node("guide_fetch.mjs")
    assert said["plain"] == {"status": 200, "content": "Hello there.", "object": "chat.completion"}
    assert said["buffered"] == {"text": "".join(words(60)), "done": True, "finish": "stop"}
    assert said["unbuffered"] == {"text": "".join(words(60)), "done": True, "finish": "stop"}
    assert said["error"] == {"status": 401, "code": "invalid_api_key"}
