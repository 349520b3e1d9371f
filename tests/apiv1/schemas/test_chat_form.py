"""Bodies of the wrong form: no JSON, something required missing, a wrong type (openai-wire.md 2)."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from apiv1.errors import status_of
from apiv1.schemas.chat import parse
from gateway.errors import MalformedBody
from tests.apiv1.schemas.chat_bodies import CALL, TOOL, USER, answering, body, message, part

FORM = [  # the form is wrong: MalformedBody
    ({"messages": [USER]}, None, None, "you must provide a model parameter"),
    ({}, None, None, "you must provide a model parameter"),
    (body(model=None), None, None, "you must provide a model parameter"),
    (body(model=""), None, None, "you must provide a model parameter"),
    (
        body(model=7),
        "invalid_type",
        "model",
        "Invalid type for 'model': expected a string, but got an integer instead.",
    ),
    ({"model": "m"}, "missing_required_parameter", "messages", "Missing required parameter: 'messages'."),
    (
        body(messages=None),
        "invalid_type",
        "messages",
        "Invalid type for 'messages': expected an array of objects, but got null instead.",
    ),
    (body(messages="Hi"), "invalid_type", "messages", None),
    (
        body(messages=["Hi"]),
        "invalid_type",
        "messages[0]",
        "Invalid type for 'messages[0]': expected an object, but got a string instead.",
    ),
    (
        body(messages=[{"content": "Hi"}]),
        "missing_required_parameter",
        "messages[0].role",
        "Missing required parameter: 'messages[0].role'.",
    ),
    (message(role=5), "invalid_type", "messages[0].role", None),
    (message(role=None), "invalid_type", "messages[0].role", None),
    (message(role=["user"]), "invalid_type", "messages[0].role", None),
    (message(name=5), "invalid_type", "messages[0].name", None),
    (body(messages=[{"role": "user"}]), "missing_required_parameter", "messages[0].content", None),
    (
        message(content={"text": "Hi"}),
        "invalid_type",
        "messages[0].content",
        "Invalid type for 'messages[0].content': expected one of a string or array of objects, "
        "but got an object instead.",
    ),
    (message(content=None), "invalid_type", "messages[0].content", None),
    (message(content=1.5), "invalid_type", "messages[0].content", None),
    (message(content=["Hi"]), "invalid_type", "messages[0].content[0]", None),
    (part(text="Hi"), "missing_required_parameter", "messages[0].content[0].type", None),
    (part(type=1), "invalid_type", "messages[0].content[0].type", None),
    (part(type="text"), "missing_required_parameter", "messages[0].content[0].text", None),
    (part(type="text", text=1), "invalid_type", "messages[0].content[0].text", None),
    (part(type="image_url"), "missing_required_parameter", "messages[0].content[0].image_url", None),
    (
        part(type="image_url", image_url="http://x/y.png"),
        "invalid_type",
        "messages[0].content[0].image_url",
        "Invalid type for 'messages[0].content[0].image_url': expected an object, but got a string instead.",
    ),
    (
        part(type="image_url", image_url={}),
        "missing_required_parameter",
        "messages[0].content[0].image_url.url",
        None,
    ),
    (
        part(type="input_audio", input_audio={"data": "AA"}),
        "missing_required_parameter",
        "messages[0].content[0].input_audio.format",
        None,
    ),
    (part(type="file", file={}), "missing_required_parameter", "messages[0].content[0].file.file_id", None),
    (
        answering({"role": "tool", "content": "4"}),
        "missing_required_parameter",
        "messages[1].tool_call_id",
        None,
    ),
    (
        answering({"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "look"}}]}),
        "missing_required_parameter",
        "messages[1].tool_calls[0].function.arguments",
        None,
    ),
    (
        answering({"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "look", "arguments": {}}}]}),
        "invalid_type",
        "messages[1].tool_calls[0].function.arguments",
        None,
    ),
    (answering({"role": "assistant", "tool_calls": "x"}), "invalid_type", "messages[1].tool_calls", None),
    (answering({"role": "assistant", "refusal": 1}), "invalid_type", "messages[1].refusal", None),
    (
        body(temperature="hot"),
        "invalid_type",
        "temperature",
        "Invalid type for 'temperature': expected a decimal, but got a string instead.",
    ),
    (body(temperature=True), "invalid_type", "temperature", None),
    (
        body(top_p=[]),
        "invalid_type",
        "top_p",
        "Invalid type for 'top_p': expected a decimal, but got an empty array instead.",
    ),
    (body(n="1"), "invalid_type", "n", None),
    (body(n=True), "invalid_type", "n", "Invalid type for 'n': expected an integer, but got a boolean instead."),
    (
        body(max_tokens=1.5),
        "invalid_type",
        "max_tokens",
        "Invalid type for 'max_tokens': expected an integer, but got a decimal number instead.",
    ),
    (body(max_completion_tokens="9"), "invalid_type", "max_completion_tokens", None),
    (body(seed="x"), "invalid_type", "seed", None),
    (
        body(stream="true"),
        "invalid_type",
        "stream",
        "Invalid type for 'stream': expected a boolean, but got a string instead.",
    ),
    (body(stream=1), "invalid_type", "stream", None),
    (body(stream=True, stream_options=True), "invalid_type", "stream_options", None),
    (body(stream=True, stream_options={"include_usage": 1}), "invalid_type", "stream_options.include_usage", None),
    (
        body(stop=5),
        "invalid_type",
        "stop",
        "Invalid type for 'stop': expected one of a string or array of strings, but got an integer instead.",
    ),
    (body(stop=["a", 5]), "invalid_type", "stop[1]", None),
    (body(presence_penalty="x"), "invalid_type", "presence_penalty", None),
    (body(frequency_penalty={}), "invalid_type", "frequency_penalty", None),
    (body(logit_bias=[]), "invalid_type", "logit_bias", None),
    (body(logit_bias={"5": "x"}), "invalid_type", "logit_bias.5", None),
    (body(logprobs="x"), "invalid_type", "logprobs", None),
    (body(logprobs=True, top_logprobs="x"), "invalid_type", "top_logprobs", None),
    (body(tools={}), "invalid_type", "tools", None),
    (body(tools=["x"]), "invalid_type", "tools[0]", None),
    (body(tools=[{}]), "missing_required_parameter", "tools[0].type", None),
    (body(tools=[{"type": "function"}]), "missing_required_parameter", "tools[0].function", None),
    (
        body(tools=[{"type": "function", "function": {}}]),
        "missing_required_parameter",
        "tools[0].function.name",
        None,
    ),
    (
        body(tools=[{"type": "function", "function": {"name": "f", "parameters": "x"}}]),
        "invalid_type",
        "tools[0].function.parameters",
        None,
    ),
    (body(tools=[{"type": "custom", "custom": {}}]), "missing_required_parameter", "tools[0].custom.name", None),
    (body(tools=[TOOL], tool_choice=5), "invalid_type", "tool_choice", None),
    (body(tools=[TOOL], tool_choice={}), "missing_required_parameter", "tool_choice.type", None),
    (
        body(tools=[TOOL], tool_choice={"type": "function"}),
        "missing_required_parameter",
        "tool_choice.function",
        None,
    ),
    (body(parallel_tool_calls="x"), "invalid_type", "parallel_tool_calls", None),
    (body(functions={}), "invalid_type", "functions", None),
    (body(functions=[{}]), "missing_required_parameter", "functions[0].name", None),
    (body(response_format="json"), "invalid_type", "response_format", None),
    (body(response_format={}), "missing_required_parameter", "response_format.type", None),
    (
        body(response_format={"type": "json_schema"}),
        "missing_required_parameter",
        "response_format.json_schema",
        "Missing required parameter: 'response_format.json_schema'.",
    ),
    (
        body(response_format={"type": "json_schema", "json_schema": {"schema": {}}}),
        "missing_required_parameter",
        "response_format.json_schema.name",
        None,
    ),
    (body(reasoning_effort=3), "invalid_type", "reasoning_effort", None),
    (body(modalities="text"), "invalid_type", "modalities", None),
    (body(modalities=["text", "audio"]), "missing_required_parameter", "audio", None),
    (body(modalities=["audio"], audio={"voice": "ash"}), "missing_required_parameter", "audio.format", None),
    (body(prediction={}), "missing_required_parameter", "prediction.type", None),
    (body(prediction={"type": "content"}), "missing_required_parameter", "prediction.content", None),
    (body(service_tier=1), "invalid_type", "service_tier", None),
    (body(store="yes"), "invalid_type", "store", None),
    (body(metadata="x"), "invalid_type", "metadata", None),
    (body(metadata={"a": 1}), "invalid_type", "metadata.a", None),
    (body(moderation={}), "missing_required_parameter", "moderation.model", None),
    (body(web_search_options=5), "invalid_type", "web_search_options", None),
    (body(prompt_cache_key=5), "invalid_type", "prompt_cache_key", None),
    (body(prompt_cache_options=5), "invalid_type", "prompt_cache_options", None),
    (body(safety_identifier=5), "invalid_type", "safety_identifier", None),
    (body(user=5), "invalid_type", "user", "Invalid type for 'user': expected a string, but got an integer instead."),
]


@pytest.mark.parametrize(("sent", "code", "param", "text"), FORM)
def test_it_refuses_a_body_of_the_wrong_form(
    sent: Any, code: str | None, param: str | None, text: str | None
) -> None:
    with pytest.raises(MalformedBody) as caught:
        parse(orjson.dumps(sent))
    assert (caught.value.code, caught.value.param, status_of(caught.value)) == (code, param, 400)
    assert caught.value.type == "invalid_request_error"
    assert text is None or caught.value.message == text


NOT_JSON = {
    "empty": b"",
    "blank": b"  ",
    "cut": b'{"model": "m", "messages": [',
    "NaN": b'{"temperature": NaN}',
    "Infinity": b'{"temperature": -Infinity}',
    "1e999": b'{"temperature": 1e999}',
    "lone surrogate": b'{"model": "\\ud800"}',
    "lone low surrogate": b'{"model": "\\udc00 and more text"}',
    "latin-1": '{"model": "é"}'.encode("latin-1"),
    "utf-16": '{"model": "m"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"model": "m"}',
    "surrogate in UTF-8": b'{"model": "\xed\xa0\x80"}',
    "5000 digits": b'{"seed": ' + b"9" * 5000 + b"}",
    "NUL": b'{"model": "\x00"}',
    "line break in a string": b'{"model": "\n"}',
    "trailing text": b'{"model": "m"} x',
    "two objects": b'{"model": "m"}{"model": "m"}',
    "single quotes": b"{'model': 'm'}",
    "10,000 arrays": b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "10,000 objects": b'{"x":' * 10_000 + b"1" + b"}" * 10_000,
    "300 objects": b'{"x":' * 300 + b"1" + b"}" * 300,
    "form": b"model=m&messages=x",
}


@pytest.mark.parametrize("raw", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_it_refuses_what_is_not_json(raw: bytes) -> None:
    with pytest.raises(MalformedBody, match="We could not parse the JSON body of your request") as caught:
        parse(raw)
    assert (caught.value.code, caught.value.param) == (None, None)


@pytest.mark.parametrize("raw", [b"[]", b'"x"', b"1", b"null", b"true", b'[{"model": "m"}]'])
def test_it_refuses_json_that_is_no_object(raw: bytes) -> None:
    with pytest.raises(MalformedBody, match="expected an object"):
        parse(raw)


def test_it_gives_422_for_the_form_alone_if_told_to(settings: Any) -> None:
    settings.FORMAT_ERROR_STATUS = 422
    with pytest.raises(MalformedBody) as caught:
        parse(b"{")
    assert status_of(caught.value) == 422
