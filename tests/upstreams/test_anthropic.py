"""gateway.upstreams.anthropic_request: what a request of OpenAI's becomes, against a strict fake of Anthropic."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.errors import InvalidRequest
from tests.upstreams.fakes.fake import Json
from tests.upstreams.fakes.spoken import ANSWERED, ASKED, GREETING, WEATHER, Spoken

PIXEL = "iVBORw0KGgo"
HELLO = [{"type": "text", "text": "Say hello."}]


@pytest.fixture
def spoken(speak: Callable[[str], Spoken]) -> Spoken:
    return speak("anthropic")


async def test_what_is_sent(spoken: Spoken) -> None:
    sent = await spoken.sends()
    assert sent == {
        "model": "claude-sonnet-4-5-20250929",
        "messages": [{"role": "user", "content": HELLO}],
        "max_tokens": 4096,
    }
    headers = spoken.fake.served[-1].headers
    assert spoken.fake.served[-1].target == "POST /v1/messages"
    assert (headers["x-api-key"], headers["anthropic-version"]) == (spoken.fake.key, "2023-06-01")
    assert "authorization" not in headers
    await spoken.stream(max_tokens=7)
    assert spoken.fake.served[-1].body["stream"] is True and spoken.fake.served[-1].body["max_tokens"] == 7


async def test_an_admin_may_name_another_version(spoken: Spoken) -> None:
    await spoken.at(api_version="2026-10-21").complete(temperature=1, top_p=1)
    assert spoken.fake.served[-1].headers["anthropic-version"] == "2026-10-21"
    with pytest.raises(InvalidRequest, match="temperature"):
        await spoken.complete(temperature=0.5)


async def test_system_messages_go_up_and_neighbours_become_one(spoken: Spoken) -> None:
    sent = await spoken.sends(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi", "name": "bob"},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}, {"type": "text", "text": "Always."}]},
        {"role": "user", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "there"}]},
        {"role": "assistant", "content": "Yes? \n", "reasoning_content": "hm", "refusal": None, "tool_calls": None},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": ""},
        GREETING,
    )
    assert sent["system"] == "Be brief.\n\nBe kind.\nAlways."
    assert sent["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes?"}, {"type": "text", "text": "No."}]},
        {"role": "user", "content": HELLO},
    ]


async def test_calls_and_their_answers(spoken: Spoken) -> None:
    calls = [ASKED["tool_calls"][0], {"id": "functions.f:1", "function": {"name": "f", "arguments": ""}}]
    sent = await spoken.sends(
        GREETING,
        {**ASKED, "content": "One moment.", "tool_calls": calls},
        ANSWERED,
        {"role": "tool", "tool_call_id": "functions.f:1", "content": ""},
        GREETING,
        tools=[WEATHER, {"type": "function", "function": {"name": "f", "strict": True}}],
    )
    assert sent["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "One moment."},
                {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {"location": "Rome"}},
                {"type": "tool_use", "id": "functions_f_1", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "18 degrees"},
                {"type": "tool_result", "tool_use_id": "functions_f_1"},
                *HELLO,
            ],
        },
    ]
    weather = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}
    assert sent["tools"] == [
        weather | {"description": "Get the weather."},
        {"name": "f", "input_schema": {"type": "object"}, "strict": True},
    ]


ALLOWED = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_weather"}}]},
}


@pytest.mark.parametrize(
    ("asked", "choice"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, None),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
            {"type": "tool", "name": "get_weather"},
        ),
        ({"tool_choice": ALLOWED}, {"type": "any"}),
        ({"parallel_tool_calls": True}, None),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": False, "tool_choice": "none"}, {"type": "none"}),
        (
            {"parallel_tool_calls": False, "tool_choice": "required"},
            {"type": "any", "disable_parallel_tool_use": True},
        ),
    ],
)
async def test_tool_choice(spoken: Spoken, asked: Json, choice: Json | None) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    sent = await spoken.sends(tools=[WEATHER, other], **asked)
    assert sent.get("tool_choice") == choice
    assert len(sent["tools"]) == (1 if asked.get("tool_choice") == ALLOWED else 2)


async def test_pictures_and_documents(spoken: Spoken) -> None:
    pdf = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}}
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpg;base64,{PIXEL}%3D \n", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.jpg"}},
        pdf,
        {"type": "file", "file": {"file_data": "data:text/csv;charset=utf-8;base64,YSxi"}},
        {"type": "text", "text": "What is this?"},
    ]
    sent = await spoken.sends({"role": "user", "content": parts})
    assert sent["messages"][0]["content"] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": PIXEL + "="}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/cat.jpg"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
            "title": "a.pdf",
        },
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a,b"}},
        {"type": "text", "text": "What is this?"},
    ]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"temperature": 0.3}, {"temperature": 0.3}),
        ({"temperature": 1, "top_p": 0.9}, {"top_p": 0.9}),
        ({"temperature": 1, "top_p": 1}, {}),
        ({"temperature": 1.7}, {}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["A", "B"]}, {"stop_sequences": ["A", "B"]}),
        ({"max_completion_tokens": 50}, {"max_tokens": 50}),
        ({"user": "u-1"}, {"metadata": {"user_id": "u-1"}}),
        ({"user": "u-1", "safety_identifier": "s-1"}, {"metadata": {"user_id": "s-1"}}),
        ({"n": 1, "logprobs": False, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}}, {}),
        ({"seed": 7, "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "verbosity": "low"}, {}),
        ({"response_format": {"type": "text"}}, {}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        ),
    ],
)
async def test_parameters(spoken: Spoken, asked: Json, expected: Json) -> None:
    sent = await spoken.sends(**asked)
    assert {name: sent[name] for name in sent if name not in ("model", "messages")} == {"max_tokens": 4096} | expected


async def test_older_models_take_temperature_and_top_p_newer_ones_say_what_is_wrong(spoken: Spoken) -> None:
    both = {"temperature": 0.3, "top_p": 0.9}
    with pytest.raises(InvalidRequest, match="`temperature` and `top_p` cannot both"):
        await spoken.complete(**both)
    sent = await spoken.at(upstream_model="claude-sonnet-4-20250514").sends(**both)
    assert (sent["temperature"], sent["top_p"]) == (0.3, 0.9)


async def test_calls_of_before_need_their_tools_which_openais_clients_leave_out(spoken: Spoken) -> None:
    """OpenAI's own example of function calling answers with the results only."""
    again = {**ASKED["tool_calls"][0], "id": "call_2"}
    answers = [ANSWERED, {**ANSWERED, "tool_call_id": "call_2"}]
    for tools in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        asked = {**ASKED, "tool_calls": [ASKED["tool_calls"][0], again]}
        said, _ = await spoken.complete(GREETING, asked, *answers, **tools)
        assert said["choices"][0]["message"]["content"] == "Hello there."
        sent = spoken.fake.served[-1].body
        assert [tool["name"] for tool in sent["tools"]] == ["get_weather"]
        assert sent["tool_choice"] == {"type": "none"}


async def test_blank_texts_say_nothing(spoken: Spoken) -> None:
    parts = [{"type": "text", "text": " \n"}, {"type": "text", "text": "Say hello."}]
    sent = await spoken.sends({"role": "system", "content": "\n "}, {"role": "user", "content": parts})
    assert "system" not in sent and sent["messages"] == [{"role": "user", "content": HELLO}]
    sent = await spoken.sends(GREETING, ASKED, {**ANSWERED, "content": "\n"}, tools=[WEATHER])
    assert sent["messages"][2]["content"] == [{"type": "tool_result", "tool_use_id": "call_1"}]


OLD, NEW = "claude-sonnet-4-5-20250929", "claude-opus-4-6"
ADAPTIVE = {"type": "adaptive", "display": "summarized"}
FORCED: Json = {"tools": [WEATHER], "tool_choice": "required"}


@pytest.mark.parametrize(
    ("model", "asked", "thinking", "cap"),
    [
        (OLD, {"reasoning_effort": "low"}, {"type": "enabled", "budget_tokens": 2048}, 6144),
        (OLD, {"reasoning_effort": "high", "max_tokens": 8000}, {"type": "enabled", "budget_tokens": 4000}, 8000),
        (OLD, {"reasoning_effort": "medium", "max_tokens": 1500}, {"type": "enabled", "budget_tokens": 1024}, 1500),
        (OLD, {"reasoning_effort": "medium", "max_tokens": 1024}, None, 1024),
        (OLD, {"reasoning_effort": "none"}, None, 4096),
        (OLD, {"reasoning_effort": "low", **FORCED}, None, 4096),
        (
            "claude-3-7-sonnet-20250219",
            {"reasoning_effort": "minimal"},
            {"type": "enabled", "budget_tokens": 1024},
            5120,
        ),
        ("claude-sonnet-4-20250514", {"reasoning_effort": "max"}, {"type": "enabled", "budget_tokens": 24576}, 28672),
        ("my-deployment", {"reasoning_effort": "low"}, {"type": "enabled", "budget_tokens": 2048}, 6144),
        (NEW, {"reasoning_effort": "low"}, ADAPTIVE, 6144),
        (NEW, {"reasoning_effort": "low", "tools": [WEATHER]}, ADAPTIVE, 6144),
        (NEW, {"reasoning_effort": "low", **FORCED}, None, 6144),
        ("claude-opus-4-8", {"reasoning_effort": "low", **FORCED}, ADAPTIVE, 6144),
        (NEW, {"reasoning_effort": "none"}, {"type": "disabled"}, 4096),
        ("claude-haiku-5-5", {"reasoning_effort": "max", "max_tokens": 50}, ADAPTIVE, 50),
    ],
)
async def test_reasoning_effort(spoken: Spoken, model: str, asked: Json, thinking: Json | None, cap: int) -> None:
    sent = await spoken.at(upstream_model=model).sends(temperature=0.5, **asked)
    assert (sent.get("thinking"), sent["max_tokens"]) == (thinking, cap)
    assert ("temperature" in sent) == (thinking is None or thinking["type"] == "disabled")
    adapts = model not in (OLD, "my-deployment") and asked["reasoning_effort"] != "none" and cap in (50, 6144)
    assert sent.get("output_config") == ({"effort": asked["reasoning_effort"]} if adapts else None)


@pytest.mark.parametrize(
    ("model", "effort", "word"),
    [(NEW, "minimal", "low"), (NEW, "xhigh", "high"), (NEW, "max", "max"), ("claude-opus-4-7", "xhigh", "xhigh")],
)
async def test_the_word_for_an_effort(spoken: Spoken, model: str, effort: str, word: str) -> None:
    sent = await spoken.at(upstream_model=model).sends(reasoning_effort=effort)
    assert sent["output_config"] == {"effort": word}


async def test_thinking_pauses_while_calls_are_answered(spoken: Spoken) -> None:
    """The signatures of the thoughts before the calls are lost on the way through OpenAI's format."""
    for after in ([], [GREETING], [{"role": "assistant", "content": ""}, GREETING]):
        sent = await spoken.sends(GREETING, ASKED, ANSWERED, *after, tools=[WEATHER], reasoning_effort="low")
        assert "thinking" not in sent
    done = {"role": "assistant", "content": "It is warm."}
    sent = await spoken.sends(GREETING, ASKED, ANSWERED, done, GREETING, tools=[WEATHER], reasoning_effort="low")
    assert sent["thinking"]["type"] == "enabled"
