"""gateway.upstreams.translator: any provider's stream comes out as OpenAI's, and the official SDK is happy."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.upstreams.base import Face
from tests.upstreams.conftest import text_in
from tests.upstreams.events import DONE, HEAD, HELLO, ROLE, Json, deltas, event, run, said, sdk_sees


def test_it_is_openais_stream() -> None:
    chunks, _ = run(*HELLO)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Hel"},
        {"content": "lo "},
        {"content": "th"},
        {"content": "ere"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 5 + ["stop"]
    assert all(set(chunk) == {"id", "object", "created", "model", "choices"} for chunk in chunks)
    assert {(c["id"], c["object"], c["created"], c["model"]) for c in chunks} == {
        ("chatcmpl-ours", "chat.completion.chunk", 1_800_000_000, "acme-chat")
    }
    assert sdk_sees(chunks).choices[0].message.content == "Hello there"


@pytest.mark.parametrize("one_by_one", [True, False])
def test_what_providers_put_around_deltas_does_not_matter(one_by_one: bool) -> None:
    shapes = [
        lambda d, f: said({"choices": [{"finish_reason": f, "index": 0, "delta": d}], **HEAD, "timings": {"a": [1]}}),
        lambda d, f: said({**HEAD, "provider": "Acme", "choices": [{"delta": d, "finish_reason": f, "x": {"y": 1}}]}),
        lambda d, f: said({"choices": [{"delta": {"role": "assistant", **d}, "finish_reason": f, "stop_reason": f}]}),
        lambda d, f: (
            json.dumps({**HEAD, "choices": [{"index": 0, "delta": d, "finish_reason": f}]}, indent=1)
            .replace("\n", " ")
            .encode()
        ),
        lambda d, f: event(
            {"content": None, "tool_calls": None, "reasoning_content": None, **d}, f or "", usage=None
        ),
        lambda d, f: event(d, f, service_tier="default", obfuscation="x" * len(d.get("content", "")) + "}]"),
    ]
    for shape in shapes:
        parts = ['a"}', "b}]", '{"delta":{"', "\\", "é😀", ',"obfuscation":"', '"usage":{}', "\n\n", " ", "end"]
        events = [shape({"content": part}, None) for part in parts]
        chunks, translator = run(*events, shape({}, "stop"), DONE, one_by_one=one_by_one)
        assert text_in(chunks) == "".join(parts)
        assert [delta.get("content") for delta in deltas(chunks)] == ["", *parts, None]
        assert set().union(*chunks) <= {"id", "object", "created", "model", "choices", "service_tier", "obfuscation"}
        assert all(set(c["choices"][0]) == {"index", "delta", "logprobs", "finish_reason"} for c in chunks)
        assert translator.usage.input_tokens == 42 and translator.usage.estimated
        sdk_sees(chunks)


def test_most_events_are_not_parsed_whole() -> None:
    _, translator = run(*HELLO)
    assert [template.choice.index for template in translator._templates] == [0]
    assert translator._lessons == 1


def test_a_delta_that_only_looks_like_the_others_is_parsed() -> None:
    more = event({"content": "b"}).replace(b'"b"}', b'"b"},"finish_reason":"stop","x":{}')
    chunks, _ = run(ROLE, event({"content": "a"}), more, DONE)
    assert text_in(chunks) == "ab"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_fields_of_the_provider_do_not_leak() -> None:
    chunks, _ = run(
        said({**HEAD, "choices": [], "prompt_filter_results": [{"x": 1}]}),
        event(
            {"role": "assistant", "content": "hi", "provider": "acme"}, provider="Acme", system_fingerprint="vllm-0.9"
        ),
        event({"content": "x"}, system_fingerprint="b5000-abc", service_tier="acme-special"),
        event({}, "stop", citations=["http://acme.example"]),
        DONE,
    )
    assert "acme" not in json.dumps(chunks).replace("acme-chat", "").lower()
    assert "vllm" not in json.dumps(chunks)


def test_openais_tier_fingerprint_and_obfuscation_pass() -> None:
    more = {"service_tier": "default", "system_fingerprint": "fp_44709d6fcb"}
    chunks, _ = run(
        event({"role": "assistant", "content": ""}, **more, usage=None, obfuscation="a1"),
        event({"content": "Hi"}, **more, usage=None, obfuscation="b22"),
        event({"content": " you"}, **more, usage=None, obfuscation="c333"),
        event({}, "stop", **more, usage=None, obfuscation="d"),
        DONE,
    )
    assert all(
        chunk["service_tier"] == "default" and chunk["system_fingerprint"] == "fp_44709d6fcb" for chunk in chunks
    )
    assert [chunk.get("obfuscation") for chunk in chunks][2:3] == ["c333"]


@pytest.mark.parametrize("theirs", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize("ours", ["reasoning", "reasoning_content", "both"])
def test_reasoning_comes_first_and_under_the_models_name(theirs: str, ours: str) -> None:
    thoughts = [event({theirs: part, "content": None}) for part in ("I ", "think")]
    merged = event({"content": "So", theirs: "."})
    chunks, translator = run(
        ROLE,
        *thoughts,
        merged,
        event({"content": " be it", theirs: None}),
        event({}, "stop"),
        DONE,
        face=Face("c", 1, "m", reasoning_field=ours),
    )
    names = ["reasoning", "reasoning_content"] if ours == "both" else [ours]
    for name in ("reasoning", "reasoning_content"):
        assert text_in(chunks, field=name) == ("I think." if name in names else "")
    assert text_in(chunks) == "So be it"
    assert list(deltas(chunks)[3]) == [*names, "content"]
    assert translator.usage.reasoning_tokens == 3
    assert "null" not in json.dumps([list(delta.values()) for delta in deltas(chunks)[1:]])


def test_both_names_at_once_are_one_text() -> None:
    chunks, _ = run(ROLE, event({"reasoning": "hm", "reasoning_content": "hm"}), event({}, "stop"), DONE)
    assert deltas(chunks)[1] == {"reasoning": "hm"}


def test_content_parts_become_text_and_reasoning() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "yes"}]
    chunks, _ = run(event({"content": parts}), event({}, "stop"), DONE)
    assert deltas(chunks)[1] == {"reasoning": "hm", "content": "yes"}


def test_tool_calls_are_whole_for_the_sdk() -> None:
    def call(**fields: Any) -> Json:
        return {"tool_calls": [fields]}

    chunks, translator = run(
        event(
            {"role": "assistant", "content": None}
            | call(index=0, id="call_a", type="function", function={"name": "f", "arguments": ""})
        ),
        event(call(index=0, id="call_a", function={"name": "f", "arguments": '{"x"'})),  # repeats id and name
        event(call(function={"arguments": ":1}"})),  # no index
        event(call(id="call_b", function={"name": "g", "arguments": {"y": 2}})),  # no index, arguments not text
        event(call(index=0, id="call_c", function={"name": "h"})),  # Gemini: every call has index 0
        event(call(index=0, id=None, function={"name": None, "arguments": "{}"})),
        event({}, "tool_calls"),
        DONE,
    )
    assert deltas(chunks)[0] == {"role": "assistant", "content": None, "refusal": None}
    message = sdk_sees(chunks).choices[0].message
    assert [(c.id, c.type, c.function.name, c.function.arguments) for c in message.tool_calls] == [
        ("call_a", "function", "f", '{"x":1}'),
        ("call_b", "function", "g", '{"y":2}'),
        ("call_c", "function", "h", "{}"),
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert translator.usage.output_tokens > 5


def test_choices_interleave() -> None:
    parts = [event({"content": f"{i}{n}"}, index=i) for n in range(3) for i in range(3)]
    finishes = [event({}, "stop", index=i) for i in range(3)]
    chunks, _ = run(*parts, *finishes, DONE)
    assert [text_in(chunks, i) for i in range(3)] == ["000102", "101112", "202122"]
    for index in range(3):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert [choice["finish_reason"] for choice in mine] == [None] * (len(mine) - 1) + ["stop"]


def test_several_choices_in_one_event() -> None:
    choices = [{"index": i, "delta": {"content": str(i)}, "finish_reason": None} for i in range(2)]
    ends = [{"index": i, "delta": {}, "finish_reason": "stop"} for i in range(2)]
    chunks, _ = run(said({"choices": choices}), said({"choices": choices}), said({"choices": ends}), DONE)
    assert (text_in(chunks), text_in(chunks, 1)) == ("00", "11")


def test_logprobs_pass() -> None:
    logprobs = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}], "refusal": None}
    one = said({"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": logprobs, "finish_reason": None}]})
    chunks, _ = run(ROLE, one, one, event({}, "stop"), DONE)
    assert [chunk["choices"][0]["logprobs"] for chunk in chunks] == [None, logprobs, logprobs, None]
