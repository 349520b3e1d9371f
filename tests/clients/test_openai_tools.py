"""Tools and structured answers in OpenAI's Python package, streamed and not."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import pydantic_function_tool
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolUnionParam
from pydantic import BaseModel

from tests.clients.conftest import Shop
from tests.upstream_scripts import Answer, Stream

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Weather in Paris and Rome?"}]
TOOLS: list[ChatCompletionToolUnionParam] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
CALLS = [
    {
        "id": f"call_{city}",
        "type": "function",
        "function": {"name": "get_weather", "arguments": f'{{"city":"{city}"}}'},
    }
    for city in ("Paris", "Rome")
]
CALLING = Answer(None, message={"tool_calls": CALLS}, choice={"finish_reason": "tool_calls"})
FRAGMENTS: list[dict[str, Any]] = [
    {"tool_calls": [{"index": number, **fragment}]}
    for number, call in enumerate(CALLS)
    for fragment in (
        {"id": call["id"], "type": "function", "function": {"name": "get_weather", "arguments": ""}},
        {"function": {"arguments": call["function"]["arguments"][:5]}},  # type: ignore[index]
        {"function": {"arguments": call["function"]["arguments"][5:]}},  # type: ignore[index]
    )
]
CALLING_STREAM = Stream(FRAGMENTS, finish="tool_calls")


class Weather(BaseModel):
    city: str
    degrees: int


class GetWeather(BaseModel):
    """Weather of a city."""

    city: str


def test_it_calls_tools_and_takes_their_answers(shop: Shop, client: openai.OpenAI) -> None:
    served = shop.serve(CALLING, Answer("18 and 25 degrees."))
    first = client.chat.completions.create(model="acme-chat", messages=ASK, tools=TOOLS, tool_choice="auto")
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.tool_calls is not None
    assert [call.id for call in message.tool_calls] == ["call_Paris", "call_Rome"]
    answers: list[ChatCompletionMessageParam] = [
        {"role": "tool", "tool_call_id": call.id, "content": "18"} for call in message.tool_calls
    ]
    # The message goes back as it came, with refusal, annotations and all.
    second = client.chat.completions.create(
        model="acme-chat",
        messages=[*ASK, message, *answers],  # type: ignore[list-item]
        tools=TOOLS,
    )
    assert second.choices[0].message.content == "18 and 25 degrees."
    assert second.choices[0].message.tool_calls is None
    assert served()[0].body["tools"] == TOOLS
    assert [sent["role"] for sent in served()[1].body["messages"]] == ["user", "assistant", "tool", "tool"]
    assert served()[1].body["messages"][1]["tool_calls"] == CALLS


def test_it_streams_tool_calls(shop: Shop, client: openai.OpenAI) -> None:
    shop.serve(CALLING_STREAM)
    calls: dict[int, dict[str, str]] = {}
    finish = None
    for chunk in client.chat.completions.create(model="acme-chat", messages=ASK, tools=TOOLS, stream=True):
        finish = chunk.choices[0].finish_reason or finish
        for part in chunk.choices[0].delta.tool_calls or []:
            call = calls.setdefault(part.index, {"id": "", "name": "", "arguments": ""})
            assert part.function is not None
            call["id"] += part.id or ""
            call["name"] += part.function.name or ""
            call["arguments"] += part.function.arguments or ""
    assert finish == "tool_calls"
    assert [calls[number]["id"] for number in (0, 1)] == ["call_Paris", "call_Rome"]
    assert [json.loads(calls[number]["arguments"]) for number in (0, 1)] == [{"city": "Paris"}, {"city": "Rome"}]
    assert {call["name"] for call in calls.values()} == {"get_weather"}


def test_it_parses_into_a_model(shop: Shop, client: openai.OpenAI) -> None:
    served = shop.serve(Answer('{"city":"Paris","degrees":18}'))
    answer = client.chat.completions.parse(model="acme-chat", messages=ASK, response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(city="Paris", degrees=18)
    sent = served()[0].body["response_format"]
    assert sent["type"] == "json_schema"
    assert (sent["json_schema"]["name"], sent["json_schema"]["strict"]) == ("Weather", True)


def test_it_parses_tool_calls(shop: Shop, client: openai.OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "GetWeather", "arguments": '{"city":"Rome"}'}}
    shop.serve(Answer(None, message={"tool_calls": [call]}, choice={"finish_reason": "tool_calls"}))
    answer = client.chat.completions.parse(
        model="acme-chat", messages=ASK, tools=[pydantic_function_tool(GetWeather)]
    )
    assert answer.choices[0].message.tool_calls is not None
    assert answer.choices[0].message.tool_calls[0].function.parsed_arguments == GetWeather(city="Rome")


def test_a_cut_answer_is_not_parsed(shop: Shop, client: openai.OpenAI) -> None:
    shop.serve(Answer('{"city":"Par', choice={"finish_reason": "length"}))
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="acme-chat", messages=ASK, response_format=Weather)


def test_the_stream_helper_follows_a_structured_answer(shop: Shop, client: openai.OpenAI) -> None:
    shop.serve(Stream(['{"city":', '"Paris",', '"degrees":', "18}"]))
    with client.chat.completions.stream(
        model="acme-chat", messages=ASK, response_format=Weather, stream_options={"include_usage": True}
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    deltas = [event.delta for event in events if event.type == "content.delta"]
    assert [delta for delta in deltas if delta] == ['{"city":', '"Paris",', '"degrees":', "18}"]
    assert [event.type for event in events].count("content.done") == 1
    assert final.choices[0].message.parsed == Weather(city="Paris", degrees=18)
    assert final.usage is not None
    assert final.usage.completion_tokens == 4


def test_the_stream_helper_follows_tool_calls(shop: Shop, client: openai.OpenAI) -> None:
    shop.serve(CALLING_STREAM)
    with client.chat.completions.stream(model="acme-chat", messages=ASK, tools=TOOLS) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    assert [event.arguments for event in done] == ['{"city":"Paris"}', '{"city":"Rome"}']
    assert final.choices[0].message.tool_calls is not None
    assert [call.id for call in final.choices[0].message.tool_calls] == ["call_Paris", "call_Rome"]
