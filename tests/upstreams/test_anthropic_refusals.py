"""What Anthropic's Messages have no words for: refused by name, before anything is sent."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.errors import InvalidRequest
from tests.upstreams.fakes.fake import Json
from tests.upstreams.fakes.spoken import ASKED, Spoken


@pytest.fixture
def spoken(speak: Callable[[str], Spoken]) -> Spoken:
    return speak("anthropic")


REFUSED: list[tuple[Json, str, str]] = [
    ({"n": 2}, "n", "unsupported_value"),
    ({"logprobs": True}, "logprobs", "unsupported_parameter"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
    ({"presence_penalty": 1}, "presence_penalty", "unsupported_parameter"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter"),
    ({"modalities": ["text", "audio"], "audio": {"voice": "a", "format": "wav"}}, "modalities", "unsupported_value"),
    ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
    ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
    ({"moderation": {"model": "m"}}, "moderation", "unsupported_parameter"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_value"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema",
        "unsupported_value",
    ),
    ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type", "unsupported_value"),
    ({"stop": [" \n"]}, "stop", "unsupported_value"),
]


@pytest.mark.parametrize(("asked", "param", "code"), REFUSED)
async def test_it_refuses_what_would_be_lost(spoken: Spoken, asked: Json, param: str, code: str) -> None:
    for call in (spoken.complete, spoken.stream):
        with pytest.raises(InvalidRequest) as refused:
            await call(**asked)
        assert (refused.value.param, refused.value.code) == (param, code)
        assert (refused.value.status, refused.value.type) == (400, "invalid_request_error")
    assert spoken.fake.served == []


IMAGE = "messages[0].content[0].image_url.url"


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        ({"role": "system", "content": "alone"}, "messages", "unsupported_value"),
        ({"role": "user", "content": ""}, "messages", "unsupported_value"),
        ({"role": "function", "name": "f", "content": "x"}, "messages[0].role", "unsupported_value"),
        (
            {"role": "assistant", "content": "x", "function_call": {"name": "f", "arguments": "{}"}},
            "messages[0].function_call",
            "unsupported_parameter",
        ),
        (
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}]},
            "messages[0].content[0].type",
            "unsupported_value",
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]},
            "messages[0].content[0].file.file_id",
            "unsupported_parameter",
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"file_data": "data:audio/wav;base64,UEs="}}]},
            "messages[0].content[0].file.file_data",
            "unsupported_value",
        ),
        (
            {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "https://x"}}]},
            "messages[0].content[0].type",
            "unsupported_value",
        ),
        *(
            ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}, IMAGE, "invalid_value")
            for url in ("data:image/png,plain", "data:image/png;base64,!", "data:;base64,", "data:x")
        ),
        *(
            (
                {**ASKED, "tool_calls": [{**ASKED["tool_calls"][0], "function": {"name": "f", "arguments": text}}]},
                "messages[0].tool_calls[0].function.arguments",
                "invalid_value",
            )
            for text in ("{", "[1]", "7", '"x"')
        ),
    ],
)
async def test_it_refuses_messages_it_has_no_words_for(spoken: Spoken, message: Json, param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await spoken.complete(message)
    assert (refused.value.param, refused.value.code) == (param, code)
    assert spoken.fake.served == []
