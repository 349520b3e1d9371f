"""gateway.upstreams.gemini_request: what a request of OpenAI's becomes, against a strict fake of Gemini."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import InvalidRequest
from tests.upstreams.fakes.fake import Json
from tests.upstreams.fakes.spoken import ANSWERED, ASKED, GREETING, WEATHER, Spoken

HELLO: Json = {"role": "user", "parts": [{"text": "Say hello."}]}
SKIP = "skip_thought_signature_validator"


@pytest.fixture
def spoken(speak: Callable[[str], Spoken]) -> Spoken:
    return speak("gemini")


async def test_what_is_sent(spoken: Spoken) -> None:
    assert await spoken.sends() == {"contents": [HELLO]}
    served = spoken.fake.served
    assert served[-1].target == "POST /v1beta/models/gemini-2.5-flash:generateContent"
    assert served[-1].headers["x-goog-api-key"] == spoken.fake.key
    await spoken.at(upstream_model="models/gemini-2.5-flash").stream()
    assert served[-1].target == "POST /v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
    assert served[-1].body == {"contents": [HELLO]}


async def test_conversations(spoken: Spoken) -> None:
    sent = await spoken.sends(
        {"role": "system", "content": "Be brief."},
        GREETING,
        {"role": "assistant", "content": "Hello.", "reasoning": "hm"},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "assistant", "content": ""},
        GREETING,
        {"role": "user", "content": [{"type": "text", "text": "Again."}]},
    )
    assert sent["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "Be kind."}]}
    assert sent["contents"] == [
        HELLO,
        {"role": "model", "parts": [{"text": "Hello."}]},
        {"role": "user", "parts": [{"text": "Say hello."}, {"text": "Again."}]},
    ]


@pytest.mark.parametrize("model", ["gemini-2.5-flash", "gemini-3-pro-preview", "gemini-flash-latest"])
async def test_calls_and_their_answers(spoken: Spoken, model: str) -> None:
    calls = [ASKED["tool_calls"][0], {"id": "call_2", "function": {"name": "now", "arguments": ""}}]
    sent = await spoken.at(upstream_model=model).sends(
        GREETING,
        {**ASKED, "tool_calls": calls},
        ANSWERED,
        {"role": "tool", "tool_call_id": "call_2", "content": '{"hour": 7}'},
        GREETING,
        tools=[WEATHER, {"type": "function", "function": {"name": "now"}}],
    )
    signed = {"thoughtSignature": SKIP} if model != "gemini-2.5-flash" else {}
    assert sent["contents"][1:] == [
        {
            "role": "model",
            "parts": [
                {"functionCall": {"name": "get_weather", "args": {"location": "Rome"}}, **signed},
                {"functionCall": {"name": "now", "args": {}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": "get_weather", "response": {"output": "18 degrees"}}},
                {"functionResponse": {"name": "now", "response": {"hour": 7}}},
            ],
        },
        HELLO,
    ]
    declared = {"name": "get_weather", "description": "Get the weather."}
    declared["parametersJsonSchema"] = WEATHER["function"]["parameters"]
    assert sent["tools"] == [{"functionDeclarations": [declared, {"name": "now"}]}]


async def test_answers_stand_in_the_order_of_their_calls(spoken: Spoken) -> None:
    """Gemini tells two calls of one function apart by nothing else, and clients send what is done first."""
    cities = ("Rome", "Oslo", "Bern")
    call = ASKED["tool_calls"][0]
    calls = [call | {"id": city} for city in cities]
    done = [{"role": "tool", "tool_call_id": city, "content": f"{city}: fine"} for city in ("Bern", "Rome", "Oslo")]
    turn = [GREETING, {**ASKED, "tool_calls": calls}, *done]
    sent = await spoken.sends(*turn, {"role": "assistant", "content": "Fine."}, *turn, tools=[WEATHER])
    for content in (sent["contents"][2], sent["contents"][6]):
        answers = [part["functionResponse"]["response"]["output"] for part in content["parts"]]
        assert answers == [f"{city}: fine" for city in cities]


async def test_a_tool_may_answer_with_a_schema(spoken: Spoken) -> None:
    schema = '{"properties": {"a": {"$ref": "#/$defs/A"}}}'
    sent = await spoken.sends(GREETING, ASKED, {**ANSWERED, "content": schema}, tools=[WEATHER])
    assert sent["contents"][2]["parts"][0]["functionResponse"]["response"] == {"output": schema}


NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize(
    ("asked", "config"),
    [
        ({}, None),
        ({"tool_choice": "auto", "parallel_tool_calls": True}, None),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"mode": "NONE"}),
        ({"tool_choice": "required"}, {"mode": "ANY"}),
        (
            {"tool_choice": NAMED, "parallel_tool_calls": False},
            {"mode": "ANY", "allowedFunctionNames": ["get_weather"]},
        ),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}}, None),
    ],
)
async def test_tool_choice(spoken: Spoken, asked: Json, config: Json | None) -> None:
    sent = await spoken.sends(tools=[WEATHER], **asked)
    assert sent.get("toolConfig") == (config and {"functionCallingConfig": config})


async def test_pictures_sounds_and_documents(spoken: Spoken) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.webp?size=1"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/picture"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_data": "JVBERi0="}},
    ]
    sent = await spoken.sends({"role": "user", "content": parts})
    assert sent["contents"][0]["parts"] == [
        {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}},
        {"fileData": {"mimeType": "image/webp", "fileUri": "https://example.com/cat.webp?size=1"}},
        {"fileData": {"mimeType": "image/jpeg", "fileUri": "https://example.com/picture"}},
        {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}},
        {"inlineData": {"mimeType": "application/pdf", "data": "JVBERi0="}},
    ]


SCHEMA: Json = {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    ("asked", "config"),
    [
        ({"temperature": 1.7, "top_p": 0.9}, {"temperature": 1.7, "topP": 0.9}),
        ({"max_tokens": 5}, {"maxOutputTokens": 5}),
        ({"max_completion_tokens": 6, "stop": "END"}, {"maxOutputTokens": 6, "stopSequences": ["END"]}),
        ({"n": 3, "seed": -7}, {"candidateCount": 3, "seed": -7}),
        ({"presence_penalty": 0.5, "frequency_penalty": -0.5}, {"presencePenalty": 0.5, "frequencyPenalty": -0.5}),
        ({"response_format": {"type": "json_object"}}, {"responseMimeType": "application/json"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA},
        ),
        ({"response_format": {"type": "text"}, "user": "u", "logprobs": False, "verbosity": "low"}, None),
    ],
)
async def test_parameters(spoken: Spoken, asked: Json, config: Json | None) -> None:
    assert (await spoken.sends(**asked)).get("generationConfig") == config


@pytest.mark.parametrize(
    ("model", "effort", "expected"),
    [
        ("gemini-2.5-flash", "none", {"thinkingBudget": 0, "includeThoughts": False}),
        ("gemini-2.5-pro", "low", {"thinkingBudget": 1024, "includeThoughts": True}),
        ("gemini-2.5-pro", "medium", {"thinkingBudget": 8192, "includeThoughts": True}),
        ("gemini-2.5-pro", "max", {"thinkingBudget": 24576, "includeThoughts": True}),
        ("gemini-3-pro-preview", "low", {"thinkingLevel": "low", "includeThoughts": True}),
        ("gemini-3.5-flash", "none", {"thinkingLevel": "minimal", "includeThoughts": False}),
        ("gemini-3.1-flash-lite", "minimal", {"thinkingLevel": "minimal", "includeThoughts": True}),
        ("gemini-3.1-pro-preview", "minimal", {"thinkingLevel": "low", "includeThoughts": True}),
        ("gemini-3.8-flash", "none", {"thinkingLevel": "low", "includeThoughts": False}),
        ("gemini-flash-latest", "minimal", {"thinkingLevel": "low", "includeThoughts": True}),
        ("gemini-flash-latest", "medium", {"thinkingLevel": "medium", "includeThoughts": True}),
        ("gemini-3.5-flash", "xhigh", {"thinkingLevel": "high", "includeThoughts": True}),
    ],
)
async def test_reasoning_effort(spoken: Spoken, model: str, effort: str, expected: Json) -> None:
    sent = await spoken.at(upstream_model=model).sends(reasoning_effort=effort)
    assert sent["generationConfig"] == {"thinkingConfig": expected}


@pytest.mark.parametrize(
    ("effort", "cap", "budget"),
    [("high", 3000, 1500), ("low", 4096, 1024), ("medium", 100, 512), ("none", 3000, 0), ("high", 60000, 24576)],
)
async def test_thoughts_leave_room_for_the_answer(spoken: Spoken, effort: str, cap: int, budget: int) -> None:
    """A cap of ours where the client sets none would else be spent on thoughts alone."""
    sent = await spoken.sends(reasoning_effort=effort, max_tokens=cap)
    assert sent["generationConfig"]["thinkingConfig"]["thinkingBudget"] == budget


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ({"logprobs": True, "top_logprobs": 2}, "logprobs", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_value"),
        ({"audio": {"voice": "a", "format": "wav"}}, "audio", "unsupported_parameter"),
        ({"function_call": "auto"}, "function_call", "unsupported_parameter"),
        ({"seed": 2**31}, "seed", "unsupported_value"),
        ({"tools": [WEATHER], "parallel_tool_calls": False}, "parallel_tool_calls", "unsupported_value"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type", "unsupported_value"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", "unsupported_value"),
        ({"messages": [GREETING, ANSWERED]}, "messages[1].tool_call_id", "invalid_value"),
        (
            {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "https://x"}}]}]},
            "messages[0].content[0].type",
            "unsupported_value",
        ),
    ],
)
async def test_it_refuses_what_would_be_lost(spoken: Spoken, asked: dict[str, Any], param: str, code: str) -> None:
    request = {"model": "acme-chat", "messages": [GREETING], **asked}
    with pytest.raises(InvalidRequest) as refused:
        spoken.adapter.body(spoken.target, request, stream=False)  # type: ignore[attr-defined]
    assert (refused.value.param, refused.value.code) == (param, code)
