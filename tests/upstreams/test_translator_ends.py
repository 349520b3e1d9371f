"""gateway.upstreams.translator: what a stream has used, and every way in which it ends."""

from __future__ import annotations

import json

import pytest

from gateway.errors import UpstreamError
from gateway.upstreams.base import Face, Usage
from gateway.upstreams.translator import Translator
from tests.upstreams.conftest import FACE, parse, text_in
from tests.upstreams.events import DONE, HEAD, HELLO, ROLE, USAGE, event, run, said, sdk_sees


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("shape", ["chunk", "merged", "continuous", "none"])
def test_usage_comes_only_when_asked_for(asked: bool, shape: str) -> None:
    so_far = (
        {"usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}} if shape == "continuous" else {}
    )
    finish = event({}, "stop", **({"usage": USAGE} if shape == "merged" else so_far))
    last = [said({**HEAD, "choices": [], "usage": USAGE})] if shape in ("chunk", "continuous") else []
    face = Face("c", 1, "m", include_usage=asked)
    chunks, translator = run(ROLE, *(event({"content": p}, **so_far) for p in "abc"), finish, *last, DONE, face=face)
    with_usage = [chunk for chunk in chunks if chunk.get("usage")]
    if asked:
        assert with_usage == chunks[-1:] and chunks[-1]["choices"] == []
        assert all("usage" in chunk for chunk in chunks)
        expected = USAGE if shape != "none" else {"prompt_tokens": 42, "completion_tokens": 1, "total_tokens": 43}
        assert {name: chunks[-1]["usage"][name] for name in USAGE} == expected
    else:
        assert not any("usage" in chunk for chunk in chunks)
        assert all(chunk["choices"] for chunk in chunks)
    if shape != "none":
        assert translator.usage == Usage(input_tokens=7, output_tokens=5)
    assert translator.usage.estimated == (shape == "none")


def test_usage_of_an_unfinished_stream_is_what_was_reported_and_delivered_since() -> None:
    translator = Translator(FACE, lambda: 42)
    translator.translate([ROLE, event({"content": "hello world"})])
    assert translator.usage == Usage(42, output_tokens=2, estimated=True)
    translator.translate([event({"content": " again"}, usage=USAGE)])
    assert translator.usage == Usage(7, output_tokens=5)
    translator.translate([event({"content": " and on"}), event({"reasoning": "hm"})])
    assert translator.usage == Usage(7, output_tokens=7, reasoning_tokens=1, estimated=True)


def test_llama_cpp_reports_each_choice_by_itself() -> None:
    parts = [event({"content": "x"}, index=i) for i in range(2)] + [event({}, "stop", index=i) for i in range(2)]
    reports = [said({**HEAD, "choices": [], "usage": USAGE, "timings": {}}) for _ in range(2)]
    chunks, translator = run(*parts, *reports, DONE, face=Face("c", 1, "m", include_usage=True))
    assert translator.usage == Usage(7, output_tokens=10)
    assert chunks[-1]["usage"]["completion_tokens"] == 10


def test_nonsense_usage_is_estimated() -> None:
    _, translator = run(
        ROLE, event({"content": "hello world"}), event({}, "stop", usage={"prompt_tokens": "x"}), DONE
    )
    assert translator.usage == Usage(42, output_tokens=2, estimated=True)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("end_turn", "stop"),
        ("MAX_TOKENS", "length"),
        ("eos", "stop"),
        ("tool_use", "tool_calls"),
    ],
)
def test_finish_reasons_are_openais(theirs: str, ours: str) -> None:
    chunks, _ = run(ROLE, event({"content": "x"}), event({"content": "y"}, theirs), DONE)
    assert text_in(chunks) == "xy"
    assert chunks[-1]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": ours}]


def test_the_reason_is_given_once_and_late_content_is_not_lost() -> None:
    chunks, _ = run(ROLE, event({"content": "a"}, "stop"), event({"content": "b"}, "stop"), event({}, "stop"), DONE)
    assert text_in(chunks) == "ab"
    assert [c["choices"][0]["finish_reason"] for c in chunks].count("stop") == 1


def test_odd_events_do_no_harm() -> None:
    odd: list[object] = [
        {**HEAD},
        {**HEAD, "choices": None},
        {**HEAD, "choices": {}},
        {**HEAD, "choices": [None, 3]},
        {**HEAD, "choices": [{}]},
        {**HEAD, "choices": [{"index": None, "delta": None, "finish_reason": ""}]},
        {**HEAD, "choices": [{"index": "0", "delta": [], "finish_reason": 3, "logprobs": []}]},
        {**HEAD, "choices": [{"index": -1, "delta": {"tool_calls": {}, "content": 3, "audio": [], "role": 3}}]},
        {**HEAD, "choices": [{"delta": {"tool_calls": [None, {}, {"function": 3, "index": "x", "id": 4}]}}]},
        {**HEAD, "choices": [], "usage": [], "error": None, "service_tier": [], "system_fingerprint": {}},
    ]
    chunks, _ = run(
        *(json.dumps(one).encode() for one in odd), b"", b"  ", event({"content": "ok"}), event({}, "stop"), DONE
    )
    assert text_in(chunks) == "ok"
    sdk_sees(chunks)


def test_half_surrogates_pass() -> None:
    chunks, _ = run(ROLE, event({"content": "\ud83d"}), event({"content": "\ude00"}), event({}, "stop"), DONE)
    assert text_in(chunks) == "\ud83d\ude00"


def test_done_without_a_finish_reason_gets_one() -> None:
    chunks, _ = run(ROLE, event({"content": "x"}), DONE)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_finish_reason_without_done_is_an_end() -> None:
    chunks, _ = run(*HELLO[:-1])
    assert text_in(chunks) == "Hello there"


@pytest.mark.parametrize(
    "bad",
    [
        said({"error": {"message": "acme-7.example.com died", "code": 500}}),
        said({"error": "died"}),
        said({"object": "error", "message": "vllm died"}),
        b"<html>",
        b'{"choices": [',
        b"[]",
        b'"text"',
        event({}, "error"),
        event({}, "abort"),
    ],
)
def test_a_failing_provider_is_an_upstream_error_after_what_it_said(bad: bytes) -> None:
    translator = Translator(FACE, lambda: 42)
    chunks = parse(translator.translate([ROLE, event({"content": "hello world"}), bad, event({"content": "x"})]))
    assert text_in(chunks) == "hello world"
    assert isinstance(translator.failure, UpstreamError)
    assert "acme" not in translator.failure.message
    assert translator.usage == Usage(42, output_tokens=2, estimated=True)


@pytest.mark.parametrize("events", [[], [DONE], HELLO[:-2], [said({**HEAD, "choices": []})]])
def test_an_end_without_an_answer_is_an_upstream_error(events: list[bytes]) -> None:
    with pytest.raises(UpstreamError):
        run(*events)
