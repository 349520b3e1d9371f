"""POST /chat/completions through Django, the real pipeline, desk and ledger, and a model that echoes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from django.http.response import HttpResponseBase
from django.test import AsyncClient

from gateway import pipeline, snapshots
from gateway.catalogue.models import Model
from gateway.errors import RateLimited, UpstreamError
from gateway.ledger.models import Hold, UsageRecord
from gateway.logs import RequestLog

URL = "/v1/chat/completions"
HELLO = {"model": "acme-chat", "messages": [{"role": "user", "content": "Hello there"}]}
Post = Callable[..., Any]


@pytest.fixture
def post(client: AsyncClient, bearer: dict[str, str], models: dict[str, Model]) -> Post:
    async def send(body: Any = HELLO, content_type: str = "application/json", **headers: str) -> HttpResponseBase:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await client.post(URL, data, content_type=content_type, headers={**bearer, **headers})

    return send


def error_of(response: Any) -> dict[str, Any]:
    assert response["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def events_of(response: Any) -> list[Any]:
    text = b"".join([part async for part in response]).decode()
    assert text.endswith("\n\n")
    lines = text.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) if line != "data: [DONE]" else "[DONE]" for line in lines]


async def test_it_answers(post: Post) -> None:
    response = await post()
    assert response.status_code == 200
    assert response["content-type"] == "application/json"
    answer = response.json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "acme-chat"
    assert answer["choices"][0]["message"]["content"] == "Hello there"
    assert set(answer["usage"]) >= {"prompt_tokens", "completion_tokens", "total_tokens"}


async def test_it_books_under_the_id_that_the_client_sees(post: Post) -> None:
    response = await post({**HELLO, "user": "ann\x00\nb"}, **{"x-client-request-id": "mine-1"})
    record = await snapshots.read(UsageRecord.objects.get)
    assert response["x-request-id"] == f"req_{record.request_id.hex}"
    assert (record.status, record.client_request_id, record.end_user) == ("completed", "mine-1", "ann  b")


async def test_it_streams(post: Post) -> None:
    response = await post({**HELLO, "stream": True})
    assert response.status_code == 200
    assert response["content-type"] == "text/event-stream; charset=utf-8"
    assert response["cache-control"] == "no-cache"
    assert response["x-accel-buffering"] == "no"
    assert not response.has_header("content-length")
    *chunks, last = await events_of(response)
    assert last == "[DONE]"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks) == "Hello there"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert all(not chunk.get("usage") for chunk in chunks)


async def test_it_sends_usage_to_who_asks(post: Post) -> None:
    response = await post({**HELLO, "stream": True, "stream_options": {"include_usage": True}})
    *chunks, usage, _ = await events_of(response)
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in chunks)


async def test_it_answers_under_the_public_name_of_an_alias(post: Post) -> None:
    assert (await post({**HELLO, "model": "acme-latest"})).json()["model"] == "acme-chat"


async def test_it_uses_the_default_model(post: Post, settings: Any) -> None:
    settings.DEFAULT_MODEL = "acme/chat:7b"
    body = {"messages": HELLO["messages"]}
    assert (await post(body)).json()["model"] == "acme/chat:7b"
    settings.DEFAULT_MODEL = ""
    response = await post(body)
    assert response.status_code == 400
    assert error_of(response)["message"] == "you must provide a model parameter"


async def test_a_model_of_others_does_not_exist(post: Post) -> None:
    for model in ("globex-chat", "no-such-model", "nul\x00", "x" * 200):
        for stream in (False, True):
            response = await post({**HELLO, "model": model, "stream": stream})
            assert response.status_code == 404
            assert error_of(response) == {
                "message": f"The model `{model}` does not exist or you do not have access to it.",
                "type": "invalid_request_error",
                "param": None,
                "code": "model_not_found",
            }


async def test_it_takes_json_however_it_is_announced(post: Post) -> None:
    for sent in ("application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"):
        assert (await post(content_type=sent)).status_code == 200


async def test_it_refuses_other_content_types(post: Post) -> None:
    for sent in ("multipart/form-data; boundary=x", "text/plain", "application/x-www-form-urlencoded"):
        response = await post(content_type=sent)
        assert response.status_code == 400
        error = error_of(response)
        assert error["code"] == "unsupported_content_type"
        kind = sent.partition(";")[0]
        assert error["message"].startswith(
            f"Unsupported content type: '{kind}'. This API method only accepts 'application/json' requests"
        )


async def test_it_refuses_a_large_body(post: Post, settings: Any) -> None:
    settings.MAX_BODY_BYTES = settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 50
    response = await post()
    assert response.status_code == 413
    length = len(json.dumps(HELLO))
    assert error_of(response) == {
        "message": f"Maximum content size limit (50) exceeded ({length} bytes read)",
        "type": "server_error",
        "param": None,
        "code": None,
    }


async def test_it_refuses_a_malformed_body(post: Post, settings: Any) -> None:
    for settings.FORMAT_ERROR_STATUS in (400, 422):
        for raw in (b"", b"{", b"[]", b'{"x":' * 10_000 + b"1" + b"}" * 10_000):
            response = await post(raw)
            assert response.status_code == settings.FORMAT_ERROR_STATUS
            assert error_of(response)["type"] == "invalid_request_error"


async def test_it_refuses_a_value_with_400_whatever_malformed_bodies_get(post: Post, settings: Any) -> None:
    settings.FORMAT_ERROR_STATUS = 422
    response = await post({**HELLO, "temperature": 3})
    assert response.status_code == 400
    assert error_of(response)["code"] == "decimal_above_max_value"


async def test_it_looks_at_the_key_before_the_body(client: AsyncClient, models: dict[str, Model]) -> None:
    response = await client.post(URL, b"{", content_type="text/plain")
    assert response.status_code == 401
    assert error_of(response)["code"] is None
    response = await client.post(URL, b"{", content_type="text/plain", headers={"authorization": "Bearer sk-nobody"})
    assert response.status_code == 401
    assert error_of(response)["code"] == "invalid_api_key"


async def test_it_books_nothing_for_what_it_refuses(post: Post) -> None:
    for body in (b"{", {**HELLO, "n": 0}, {**HELLO, "model": "x"}):
        assert (await post(body)).status_code >= 400
    assert await snapshots.read(lambda: UsageRecord.objects.count() + Hold.objects.count()) == 0


async def test_it_passes_the_request_on_as_it_came(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[pipeline.Call] = []

    async def complete(call: pipeline.Call) -> bytes:
        calls.append(call)
        return b"{}"

    monkeypatch.setattr(pipeline, "complete", complete)
    message = {"role": "assistant", "content": "a", "reasoning": "b", "refusal": None, "annotations": [], "x": 1}
    body = {**HELLO, "messages": [message], "temperature": 0.5, "max_tokens": None, "safety_identifier": "ann"}
    assert (await post(body)).content == b"{}"
    (call,) = calls
    assert call.body == {"model": "acme-chat", "messages": [message], "temperature": 0.5, "safety_identifier": "ann"}
    assert (call.model, call.stream, call.include_usage, call.end_user) == ("acme-chat", False, False, "ann")
    assert call.caller.tenant == "acme"
    assert await call.reload(call.caller) == call.caller


async def test_it_hands_on_status_and_headers_of_a_refusal(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(call: pipeline.Call) -> bytes:
        raise RateLimited("Slow down.", headers={"retry-after": "7"})

    monkeypatch.setattr(pipeline, "complete", refuse)
    response = await post()
    assert (response.status_code, response["retry-after"]) == (429, "7")
    assert error_of(response)["code"] == "rate_limit_exceeded"


async def test_a_fault_before_the_first_event_is_json(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(call: pipeline.Call) -> AsyncIterator[bytes]:
        raise UpstreamError("The model's provider failed.")

    monkeypatch.setattr(pipeline, "open_stream", fail)
    response = await post({**HELLO, "stream": True})
    assert response.status_code == 502
    assert error_of(response)["type"] == "server_error"


async def test_a_defect_says_nothing_and_is_logged(
    post: Post, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(call: pipeline.Call) -> bytes:
        raise ZeroDivisionError("the secret of the house")

    monkeypatch.setattr(pipeline, "complete", fail)
    response = await post()
    assert response.status_code == 500
    assert error_of(response)["type"] == "server_error"
    assert b"secret" not in response.content
    (record,) = [record for record in caplog.records if record.name == "apiv1.errors"]
    assert record.exc_info is not None
    assert record.__dict__["request_id"] == response["x-request-id"]


async def test_it_tells_the_log_who_and_what(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[RequestLog] = []
    monkeypatch.setattr(RequestLog, "write", lambda self, status: lines.append(self))
    await post()
    assert (lines[0].tenant, lines[0].model) == ("acme", "acme-chat")
    assert len(lines[0].key) == 12
    assert (lines[0].input_tokens or 0) > 0
    assert (lines[0].output_tokens or 0) > 0
    await post({**HELLO, "model": "no\nsuch"})
    assert lines[1].model == "no such"


async def test_a_stream_that_is_cut_is_booked_as_interrupted(post: Post) -> None:
    response = await post({**HELLO, "stream": True})
    parts = response._iterator
    await anext(parts)
    await parts.aclose()
    async with asyncio.timeout(60):
        while not (records := await snapshots.read(lambda: list(UsageRecord.objects.all()))):
            await asyncio.sleep(0.01)
    assert [record.status for record in records] == ["interrupted"]
