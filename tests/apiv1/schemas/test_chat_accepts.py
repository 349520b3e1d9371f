"""What OpenAI accepts is accepted, and goes on as it came."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apiv1.schemas.chat import RULES, SCHEMA, parse
from gateway.errors import InvalidRequest

USER = {"role": "user", "content": "Hi"}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CUSTOM = {
    "type": "custom",
    "custom": {
        "name": "sql",
        "description": "SQL",
        "format": {"type": "grammar", "grammar": {"definition": "x", "syntax": "lark"}},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}

EVERYTHING: dict[str, list[Any]] = {
    "temperature": [0, 1, 2, 0.7, 2.0],
    "top_p": [0, 1, 0.5],
    "n": [1, 128],
    "stream": [True, False],
    "max_completion_tokens": [1, 100_000],
    "max_tokens": [1],
    "stop": ["\n", "", ["a"], ["a", "b", "c", "d"]],
    "presence_penalty": [-2, 0, 2, 1.5],
    "frequency_penalty": [-2, 0, 2],
    "logit_bias": [{}, {"50256": -100, "1": 100}],
    "logprobs": [True, False],
    "top_logprobs": [0],
    "seed": [0, -1, 2**63 - 1, -(2**63)],
    "tools": [[LOOK], [CUSTOM], [LOOK] * 128, [{"type": "function", "function": {"name": "f", "strict": True}}]],
    "tool_choice": ["none"],
    "parallel_tool_calls": [True, False],
    "functions": [[{"name": "f", "description": "d", "parameters": {}}]],
    "function_call": ["none"],
    "response_format": [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "Answer", "strict": True, "schema": {"type": "object"}}},
        {"type": "json_schema", "json_schema": {"name": "Answer", "strict": None}},
    ],
    "reasoning_effort": ["none", "minimal", "low", "medium", "high", "xhigh", "max"],
    "verbosity": ["low", "medium", "high"],
    "modalities": [["text"]],
    "prediction": [
        {"type": "content", "content": "x"},
        {"type": "content", "content": [{"type": "text", "text": "x"}]},
    ],
    "service_tier": ["auto", "default", "flex", "scale", "priority", "fast"],
    "store": [True, False],
    "metadata": [{}, {"k" * 64: "v" * 512}, {str(i): "" for i in range(16)}],
    "moderation": [{"model": "omni-moderation-latest"}, {"model": "m", "policy": {"input": {"mode": "score"}}}],
    "web_search_options": [
        {},
        {
            "search_context_size": "low",
            "user_location": {"type": "approximate", "approximate": {"city": "Berlin", "timezone": "Europe/Berlin"}},
        },
    ],
    "prompt_cache_key": ["x"],
    "prompt_cache_retention": ["in_memory", "24h"],
    "prompt_cache_options": [{"mode": "implicit"}, {"mode": "explicit", "ttl": "30m"}],
    "safety_identifier": ["x" * 128],
    "user": ["", "x" * 1000, "user\x00one"],
}
COMBINED: list[dict[str, Any]] = [
    {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
    {"stream": True, "stream_options": {"include_usage": None}},
    {"logprobs": True, "top_logprobs": 20},
    {"modalities": ["text", "audio"], "audio": {"voice": "ash", "format": "pcm16"}},
    {"modalities": ["audio"], "audio": {"voice": {"id": "voice_1"}, "format": "wav"}},
    {"tools": [LOOK], "tool_choice": "required"},
    {"tools": [LOOK], "tool_choice": {"type": "function", "function": {"name": "look"}}},
    {"tools": [CUSTOM], "tool_choice": {"type": "custom", "custom": {"name": "sql"}}},
    {
        "tools": [LOOK, CUSTOM],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [LOOK]}},
    },
    {"functions": [{"name": "f"}], "function_call": {"name": "f"}},
    {"functions": [{"name": "f"}], "function_call": "auto"},
]
MESSAGES: list[list[dict[str, Any]]] = [
    [{"role": "developer", "content": "Be brief."}, USER],
    [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, {**USER, "name": "ann"}],
    [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look"},
                {"type": "image_url", "image_url": {"url": "https://host/a.png", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": None}},
                {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
                {"type": "file", "file": {"file_id": "file-1"}},
                {"type": "file", "file": {"file_data": "data:;base64,AA", "filename": "a.pdf"}},
            ],
        }
    ],
    # as OpenAI's clients send them back
    [
        USER,
        {
            "role": "assistant",
            "content": "Hello",
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "tool_calls": None,
        },
        USER,
    ],
    [USER, {"role": "assistant", "content": None, "refusal": "No."}, USER],
    [USER, {"role": "assistant", "content": "Hello", "reasoning": "I think", "reasoning_content": "so"}, USER],
    [USER, {"role": "assistant", "content": None, "reasoning": "thought until the end"}, USER],
    [USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]}],
    [USER, {"role": "assistant", "content": None, "audio": {"id": "audio_1"}}],
    [
        USER,
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "4"},
    ],
    [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "call_2"}]},
        {"role": "tool", "tool_call_id": "call_2", "content": "4"},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "4"}]},
        USER,
    ],
    [
        USER,
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "sql", "input": "x"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "4"},
    ],
    [{"role": "user", "content": "", "weight": 0, "cache_control": {"type": "ephemeral"}, "x": [1, {"y": None}]}],
    [{"role": "function", "content": "4"}, {"role": "function", "name": "f", "content": None}, USER],
    [{"role": "user", "content": "a NUL \x00, an emoji 🦜"}],
]


def roundtrip(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    sent = {"model": "acme-chat", "messages": [USER], **changes}
    return sent, parse(orjson.dumps(sent))


def test_it_knows_every_parameter_of_the_contract() -> None:
    assert set(RULES) == {"model", "messages", "stream_options", "audio", *EVERYTHING}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in EVERYTHING.items() for value in values]
)
def test_it_takes_a_parameter_as_it_is(name: str, value: Any) -> None:
    sent, got = roundtrip(**{name: value})
    assert got == sent


@pytest.mark.parametrize("changes", COMBINED)
def test_it_takes_parameters_that_go_together(changes: dict[str, Any]) -> None:
    sent, got = roundtrip(**changes)
    assert got == sent


@pytest.mark.parametrize("messages", MESSAGES)
def test_it_takes_messages_as_they_are(messages: list[dict[str, Any]]) -> None:
    sent, got = roundtrip(messages=messages)
    assert got == sent


@pytest.mark.parametrize("name", sorted(set(RULES) - {"model", "messages"}))
def test_it_takes_null_for_absent(name: str) -> None:
    _, got = roundtrip(**{name: None})
    assert name not in got


def test_it_takes_whole_floats_for_integers() -> None:
    _, got = roundtrip(max_tokens=10.0, n=1.0, seed=3e2, logit_bias={"7": -5.0})
    assert [type(got[name]) for name in ("max_tokens", "n", "seed")] == [int, int, int]
    assert got["logit_bias"] == {"7": -5}
    assert type(got["logit_bias"]["7"]) is int


def test_it_uses_the_default_model_when_none_is_named() -> None:
    for raw in (b'{"messages":[%s]}', b'{"model":null,"messages":[%s]}', b'{"model":"","messages":[%s]}'):
        assert parse(raw % orjson.dumps(USER), default_model="acme-chat")["model"] == "acme-chat"


def test_it_takes_the_last_of_duplicate_keys_as_openai_does() -> None:
    got = parse(b'{"model":"a","model":"b","messages":[{"role":"user","content":"Hi"}],"n":1,"n":2}')
    assert (got["model"], got["n"]) == ("b", 2)


def test_it_takes_a_deep_but_reasonable_schema() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(60):
        schema = {"type": "object", "properties": {"x": schema}}
    sent, got = roundtrip(tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}])
    assert got == sent


def test_it_takes_many_messages() -> None:
    sent, got = roundtrip(messages=[USER] * 2000)
    assert got == sent


def test_it_documents_what_it_decides() -> None:
    assert SCHEMA["properties"]["temperature"] == {"type": "number", "minimum": 0, "maximum": 2}
    assert SCHEMA["properties"]["tools"]["maxItems"] == 128
    orjson.dumps(SCHEMA)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ROLES = st.sampled_from(["user", "assistant", "tool", "system", "function", "developer", "bot", None, 3])
MESSAGE = st.fixed_dictionaries(
    {"role": ROLES, "content": JSON},
    optional={"tool_calls": JSON, "name": JSON, "tool_call_id": JSON, "audio": JSON, "refusal": JSON},
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.builds(
        lambda name, value: {"model": "m", "messages": [USER]} | {name: value}, st.sampled_from(list(RULES)), JSON
    )
    | st.builds(lambda messages: {"model": "m", "messages": messages}, st.lists(MESSAGE, max_size=3))
)
def test_it_never_fails_on_any_json(sent: dict[str, Any]) -> None:
    try:
        got = parse(orjson.dumps(sent))
    except InvalidRequest as exc:
        orjson.dumps([exc.message, exc.param])
    else:
        orjson.dumps(got)
