"""gateway.upstreams.faults and scrub: what a provider's no means for a client, and what it must not say."""

from __future__ import annotations

import errno
import json
import logging
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GatewayError, InvalidRequest, RateLimited, Unavailable, UpstreamError, UpstreamTimeout
from gateway.upstreams.base import Target
from gateway.upstreams.faults import from_exception, from_response, retry_headers
from gateway.upstreams.scrub import scrub

TARGET = Target(
    3, 2, "openai", "https://llm-7.acme-ai.com:8443/v1", "sk-live-1234567890abcdef", "acme/Chat-4.1-2026", 5, 5
)


def fault(status: int, body: object = None, headers: dict[str, str] | None = None) -> GatewayError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return from_response(status, headers or {}, data, TARGET, "acme-chat")


def error(message: object, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **fields}}


@pytest.mark.parametrize(
    ("status", "kind", "ours"),
    [
        (301, UpstreamError, 502),
        (401, UpstreamError, 502),
        (402, UpstreamError, 502),
        (403, UpstreamError, 502),
        (404, UpstreamError, 502),
        (405, UpstreamError, 502),
        (408, UpstreamTimeout, 504),
        (429, RateLimited, 429),
        (500, UpstreamError, 502),
        (502, UpstreamError, 502),
        (503, Unavailable, 503),
        (504, UpstreamTimeout, 504),
        (524, UpstreamTimeout, 504),
        (529, Unavailable, 503),
        (599, UpstreamError, 502),
    ],
)
def test_statuses(status: int, kind: type[GatewayError], ours: int) -> None:
    for body in (
        error("Acme org-abc123456 key sk-live-1234567890abcdef at llm-7.acme-ai.com"),
        b"<html>Acme</html>",
        b"",
    ):
        found = fault(status, body)
        assert type(found) is kind and found.status == ours
        assert "acme" not in found.message.lower() and "sk-" not in found.message
        if status in (401, 403, 404):
            assert isinstance(found, UpstreamError)


def test_a_400_passes_through() -> None:
    message = "Invalid 'tools[0].function.name': string does not match pattern."
    found = fault(400, error(message, param="tools[0].function.name", code="invalid_value"))
    assert type(found) is InvalidRequest
    assert (found.status, found.message) == (400, message)
    assert (found.type, found.param, found.code) == (
        "invalid_request_error",
        "tools[0].function.name",
        "invalid_value",
    )


@pytest.mark.parametrize(
    "body",
    [
        error(
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
            code="context_length_exceeded",
            param="messages",
        ),
        error(
            "This model's maximum context length is 8192 tokens. However, you requested 9000.",
            type="BadRequestError",
            code=400,
        ),
        {
            "object": "error",
            "message": "maximum context length is 8192 tokens",
            "type": "BadRequestError",
            "code": 400,
        },
        error(
            "the request exceeds the available context size, try increasing it",
            type="exceed_context_size_error",
            code=400,
        ),
        [error("prompt is too long: 9000 tokens > 8192 maximum")],
    ],
)
def test_context_length_exceeded_survives_in_every_dialect(body: object) -> None:
    found = fault(400, body)
    assert type(found) is InvalidRequest
    assert (found.type, found.code, found.param) == ("invalid_request_error", "context_length_exceeded", "messages")


@pytest.mark.parametrize("status", [413, 422])
def test_other_words_for_a_bad_request_are_400(status: int) -> None:
    found = fault(status, {"detail": "temperature must be below 2"})
    assert (type(found), found.status, found.message) == (InvalidRequest, 400, "temperature must be below 2")


@pytest.mark.parametrize("body", [b"", b"<html>", b"{", [], {}, {"error": None}, {"detail": []}, "text", 5])
def test_a_400_without_a_reason_is_the_providers_fault(body: object) -> None:
    assert type(fault(400, body)) is UpstreamError


@pytest.mark.parametrize("odd", [None, 5, [], {}, "", "x" * 100_000])
def test_odd_error_objects_are_taken(odd: object) -> None:
    found = fault(400, {"error": {"message": odd, "type": odd, "param": odd, "code": odd}})
    assert type(found) is InvalidRequest and found.message and len(found.message) <= 2_000
    assert found.type == "invalid_request_error" and found.code is None
    assert found.param is None or len(found.param) <= 200


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, {}),
        ({"retry-after": "7"}, {"retry-after": "7"}),
        ({"retry-after": "0.2"}, {"retry-after": "1"}),
        ({"retry-after-ms": "1500"}, {"retry-after-ms": "1500", "retry-after": "2"}),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, {"retry-after": "50"}),
        ({"retry-after": "soon"}, {}),
        ({"retry-after": "-5", "retry-after-ms": "nan"}, {}),
        ({"retry-after": "1e99"}, {"retry-after": "86400"}),
        ({"retry-after": "inf", "retry-after-ms": "1e99"}, {}),
        ({"retry-after": "7\r\nset-cookie: x"}, {}),
    ],
)
def test_retry_after_passes_if_it_makes_sense(headers: dict[str, str], expected: dict[str, str]) -> None:
    assert retry_headers(headers, now=10.0) == expected
    assert fault(429, error("slow down"), headers).headers.keys() == expected.keys()


def test_an_overloaded_provider_says_when_to_come_back() -> None:
    assert fault(503, b"", {"retry-after": "9"}).headers == {"retry-after": "9"}


def test_the_operator_reads_the_cause_without_the_key(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "gateway.upstreams"):
        fault(401, error("Incorrect API key provided: sk-live-1234567890abcdef"))
        fault(500, error("worker died, key sk-theirs-1234567890"))
        fault(400, error("Your prompt 'a private matter' is invalid"))
    assert "provider 2 (deployment 3): status 401" in caplog.text
    assert "sk-live-1234567890abcdef" not in caplog.text
    assert "worker died" in caplog.text
    assert "sk-theirs" not in caplog.text
    assert "private" not in caplog.text


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("The model `acme/Chat-4.1-2026` does not support tools.", "The model `acme-chat` does not support tools."),
        ("See https://docs.acme-ai.com/errors?x=1 for more.", "See the provider for more."),
        ("Host llm-7.acme-ai.com:8443 failed, try api.openai.com", "Host the provider failed, try the provider"),
        ("Upstream 10.0.3.4:8000 and [fd00:1::5]:80 closed", "Upstream the provider and the provider closed"),
        ("Incorrect key sk-live-1234567890abcdef", "Incorrect key ***"),
        ("Key sk-proj-****9900 and Bearer abcdefghijk", "Key *** and ***"),
        ("organization org-AbC123456789 project proj_x1y2z3a4", "organization *** project ***"),
        ("(request id: req_0123456789abcdef, 0f8fad5b-d9cb-469f-a165-70867728950e)", "(request id: ***, ***)"),
        ("write to help@acme-ai.com", "write to the provider"),
        ("At 12:30:45, 3.5 of 4.0 tokens: messages[0].content, e.g. gpt-4.1", None),
        ("Invalid schema for response_format 'x': in context=('properties', 'a'), 'b' is not valid.", None),
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", None),
        ("together the messages have 100:200:300 tokens", None),
    ],
)
def test_texts_lose_only_what_is_nobodys_business(theirs: str, ours: str | None) -> None:
    assert scrub(theirs, TARGET, "acme-chat") == (theirs if ours is None else ours)


def test_the_public_name_may_look_like_anything() -> None:
    assert scrub("no acme/Chat-4.1-2026", TARGET, "llm.acme-ai.com/x") == "no llm.acme-ai.com/x"


def test_brands_are_recognised_by_their_capital() -> None:
    target = Target(1, 1, "openai", "https://api.together.ai/v1", "", "m9", 5, 5)
    assert scrub("Together AI: all messages together", target, "x") == "the provider AI: all messages together"


def test_our_name_of_the_provider_is_not_repeated() -> None:
    target = Target(1, 1, "openai", "http://10.0.0.1/v1", "", "m9", 5, 5, provider="acme-llm")
    assert scrub("acme-llm: no m9 at Acme-LLM.", target, "chat") == "the provider: no chat at the provider."
    plain = Target(1, 1, "openai", "http://10.0.0.1/v1", "", "m9", 5, 5, provider="local")
    assert scrub("a local limit", plain, "chat") == "a local limit"


@given(text=st.text(max_size=200), url=st.sampled_from(["", "http://[::1]:9/v1", "x", "http://a/"]))
def test_scrubbing_never_raises(text: str, url: str) -> None:
    assert isinstance(scrub(text, Target(1, 1, "openai", url, "", "", 1, 1), "m"), str)


@pytest.mark.parametrize(
    ("number", "ours"), [(errno.EMFILE, True), (errno.ENFILE, True), (errno.ECONNREFUSED, False)]
)
def test_who_is_short_of_files_is_not_the_provider(number: int, ours: bool) -> None:
    where: Any = SimpleNamespace(host="llm-7.acme-ai.com", port=8443, ssl=True)
    found = from_exception(aiohttp.ClientConnectorError(where, OSError(number, "no")), TARGET, "connect")
    assert (found.ours, found.phase) == (ours, "connect")
