"""Every row of openai-wire.md 2, "Validation answers", on values: status, code, param and sentence."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from apiv1.errors import status_of
from apiv1.schemas.chat import parse
from gateway.errors import InvalidRequest, MalformedBody
from tests.apiv1.schemas.chat_bodies import CALL, TOOL, USER, answering, body, dumped, message, part

VALUE = [  # the form is right, a value is not: InvalidRequest, always 400
    (
        body(temperature=3),
        "decimal_above_max_value",
        "temperature",
        "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 instead.",
    ),
    (
        body(temperature=-0.5),
        "decimal_below_min_value",
        "temperature",
        "Invalid 'temperature': decimal below minimum value. Expected a value >= 0, but got -0.5 instead.",
    ),
    (body(top_p=1.01), "decimal_above_max_value", "top_p", None),
    (body(top_p=-1), "decimal_below_min_value", "top_p", None),
    (body(presence_penalty=2.1), "decimal_above_max_value", "presence_penalty", None),
    (body(presence_penalty=-2.1), "decimal_below_min_value", "presence_penalty", None),
    (body(frequency_penalty=3), "decimal_above_max_value", "frequency_penalty", None),
    (body(frequency_penalty=-3), "decimal_below_min_value", "frequency_penalty", None),
    (
        body(n=129),
        "integer_above_max_value",
        "n",
        "Invalid 'n': integer above maximum value. Expected a value <= 128, but got 129 instead.",
    ),
    (body(n=0), "integer_below_min_value", "n", None),
    (
        body(max_tokens=0),
        "integer_below_min_value",
        "max_tokens",
        "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, but got 0 instead.",
    ),
    (body(max_completion_tokens=-1), "integer_below_min_value", "max_completion_tokens", None),
    (body(max_tokens=2**31), "integer_above_max_value", "max_tokens", None),
    (body(max_tokens=10**30), "integer_above_max_value", "max_tokens", None),
    (body(logprobs=True, top_logprobs=21), "integer_above_max_value", "top_logprobs", None),
    (body(logprobs=True, top_logprobs=-1), "integer_below_min_value", "top_logprobs", None),
    (body(seed=2**63), "integer_above_max_value", "seed", None),
    (body(logit_bias={"50256": 101}), "integer_above_max_value", "logit_bias.50256", None),
    (body(logit_bias={"50256": -101}), "integer_below_min_value", "logit_bias.50256", None),
    (
        body(logit_bias={"a": 1}),
        None,
        "logit_bias",
        "Invalid key in 'logit_bias': a. You should only be submitting non-negative integers.",
    ),
    (
        body(messages=[]),
        "empty_array",
        "messages",
        "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
    ),
    (message(content=[]), "empty_array", "messages[0].content", None),
    (body(tools=[]), "empty_array", "tools", None),
    (
        body(tools=[TOOL] * 129),
        "array_above_max_length",
        "tools",
        "Invalid 'tools': array too long. Expected an array with maximum length 128, "
        "but got an array with length 129 instead.",
    ),
    (body(functions=[]), "empty_array", "functions", None),
    (body(functions=[{"name": "f"}] * 129), "array_above_max_length", "functions", None),
    (body(stop=[]), "empty_array", "stop", None),
    (body(stop=list("abcde")), "array_above_max_length", "stop", None),
    (body(modalities=[]), "empty_array", "modalities", None),
    (answering({"role": "assistant", "tool_calls": []}), "empty_array", "messages[1].tool_calls", None),
    (
        message(role="bot"),
        "invalid_value",
        "messages[0].role",
        "Invalid value: 'bot'. Supported values are: 'system', 'assistant', 'user', 'function', 'tool', "
        "and 'developer'.",
    ),
    (
        part(type="video"),
        "invalid_value",
        "messages[0].content[0].type",
        "Invalid value: 'video'. Supported values are: 'text', 'image_url', 'input_audio', 'refusal', and 'file'.",
    ),
    (
        part(type="image_url", image_url={"url": "ftp://x"}),
        "invalid_value",
        "messages[0].content[0].image_url.url",
        None,
    ),
    (
        part(type="image_url", image_url={"url": "data:x", "detail": "huge"}),
        "invalid_value",
        "messages[0].content[0].image_url.detail",
        None,
    ),
    (
        part(type="input_audio", input_audio={"data": "AA", "format": "ogg"}),
        "invalid_value",
        "messages[0].content[0].input_audio.format",
        "Invalid value: 'ogg'. Supported values are: 'wav' and 'mp3'.",
    ),
    (body(tools=[{"type": "retrieval"}]), "invalid_value", "tools[0].type", None),
    (
        body(tools=[{"type": "function", "function": {"name": "a b"}}]),
        "invalid_value",
        "tools[0].function.name",
        "Invalid 'tools[0].function.name': string does not match pattern. "
        "Expected a string that matches the pattern '^[a-zA-Z0-9_-]+$'.",
    ),
    (
        body(tools=[{"type": "function", "function": {"name": "a\n"}}]),
        "invalid_value",
        "tools[0].function.name",
        None,
    ),
    (
        body(tools=[{"type": "function", "function": {"name": ""}}]),
        "string_below_min_length",
        "tools[0].function.name",
        None,
    ),
    (
        body(tools=[{"type": "function", "function": {"name": "a" * 65}}]),
        "string_above_max_length",
        "tools[0].function.name",
        "Invalid 'tools[0].function.name': string too long. Expected a string with maximum length 64, "
        "but got a string with length 65 instead.",
    ),
    (
        body(tools=[TOOL], tool_choice="maybe"),
        "invalid_value",
        "tool_choice",
        "Invalid value: 'maybe'. Supported values are: 'none', 'auto', and 'required'.",
    ),
    (
        body(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "leap"}}),
        None,
        "tool_choice",
        "Invalid value for 'tool_choice': no function named 'leap' was specified in the 'tools' parameter.",
    ),
    (
        body(tools=[TOOL], tool_choice={"type": "custom", "custom": {"name": "look"}}),
        None,
        "tool_choice",
        None,
    ),
    (
        body(
            tools=[TOOL],
            tool_choice={
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "leap"}}]},
            },
        ),
        None,
        "tool_choice",
        None,
    ),
    (
        body(tool_choice="auto"),
        None,
        "tool_choice",
        "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
    ),
    (body(function_call="auto"), None, "function_call", None),
    (body(functions=[{"name": "f"}], function_call={"name": "g"}), None, "function_call", None),
    (body(functions=[{"name": "f f"}]), "invalid_value", "functions[0].name", None),
    (body(response_format={"type": "xml"}), "invalid_value", "response_format.type", None),
    (
        body(response_format={"type": "json_schema", "json_schema": {"name": "a b"}}),
        "invalid_value",
        "response_format.json_schema.name",
        None,
    ),
    (body(reasoning_effort="extreme"), "invalid_value", "reasoning_effort", None),
    (body(verbosity="loud"), "invalid_value", "verbosity", None),
    (
        body(modalities=["video"]),
        "invalid_value",
        "modalities[0]",
        "Invalid value: 'video'. Supported values are: 'text' and 'audio'.",
    ),
    (body(modalities=["audio"], audio={"voice": "ash", "format": "ogg"}), "invalid_value", "audio.format", None),
    (body(audio={"voice": "ash", "format": "wav"}), None, "audio", None),
    (body(prediction={"type": "x"}), "invalid_value", "prediction.type", None),
    (body(service_tier="gold"), "invalid_value", "service_tier", None),
    (body(prompt_cache_retention="1h"), "invalid_value", "prompt_cache_retention", None),
    (body(prompt_cache_options={"mode": "x"}), "invalid_value", "prompt_cache_options.mode", None),
    (
        body(web_search_options={"search_context_size": "x"}),
        "invalid_value",
        "web_search_options.search_context_size",
        None,
    ),
    (body(metadata={str(i): "" for i in range(17)}), "object_above_max_properties", "metadata", None),
    (body(metadata={"k" * 65: ""}), "string_above_max_length", "metadata", None),
    (body(metadata={"k": "v" * 513}), "string_above_max_length", "metadata.k", None),
    (body(safety_identifier="x" * 129), "string_above_max_length", "safety_identifier", None),
    (body(model="x" * 257), "string_above_max_length", "model", None),
    (body(frobnicate=1), "unknown_parameter", "frobnicate", "Unknown parameter: 'frobnicate'."),
    (body(frobnicate=None), "unknown_parameter", "frobnicate", None),
    (
        body(stream_options={"include_usage": True}),
        None,
        "stream_options",
        "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
    ),
    (body(stream=False, stream_options={}), None, "stream_options", None),
    (body(max_tokens=5, max_completion_tokens=5), "invalid_parameter_combination", "max_tokens", None),
    (body(top_logprobs=5), None, "top_logprobs", None),
    (body(logprobs=False, top_logprobs=5), None, "top_logprobs", None),
    (
        answering({"role": "tool", "tool_call_id": "call_1", "content": "4"}),
        None,
        "messages.[1].role",
        "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with 'tool_calls'.",
    ),
    (
        answering(
            {"role": "assistant", "tool_calls": [CALL]},
            USER,
            {"role": "tool", "tool_call_id": "call_1", "content": "4"},
        ),
        None,
        "messages.[3].role",
        None,
    ),
    (
        answering({"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "x", "content": "4"}),
        None,
        "messages.[2].tool_call_id",
        None,
    ),
    (answering({"role": "assistant", "content": None}), None, "messages.[1].content", None),
    (answering({"role": "assistant"}), None, "messages.[1].content", None),
]


@pytest.mark.parametrize(("sent", "code", "param", "text"), VALUE)
def test_it_refuses_a_value(sent: Any, code: str | None, param: str | None, text: str | None, settings: Any) -> None:
    settings.FORMAT_ERROR_STATUS = 422  # of no matter here
    with pytest.raises(InvalidRequest) as caught:
        parse(dumped(sent))
    assert not isinstance(caught.value, MalformedBody)
    assert (caught.value.code, caught.value.param, status_of(caught.value)) == (code, param, 400)
    assert caught.value.type == "invalid_request_error"
    assert text is None or caught.value.message == text


def test_it_repeats_no_more_than_200_characters_of_a_value() -> None:
    for sent in (message(role="x" * 10_000), body(**{"x" * 10_000: 1}), body(logit_bias={"x" * 10_000: 1})):
        with pytest.raises(InvalidRequest) as caught:
            parse(orjson.dumps(sent))
        assert len(caught.value.message) < 400
