"""gateway.upstreams.tokens: offline counts and cheap estimates."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstreams import tokens


def test_it_counts_as_openai_does() -> None:
    # tiktoken's o200k_base
    assert tokens.count("") == 0
    assert tokens.count("hello world") == 2
    assert tokens.count("<|endoftext|>") == 7, "special tokens in a text are plain text"


def test_it_loads_its_tables_without_a_network() -> None:
    closed = "import socket; socket.socket.connect = None"
    code = f"{closed}; from gateway.upstreams import tokens; print(tokens.count('hello world'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"


def test_it_falls_back_to_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "quicktok", None)
    tokens._counter.cache_clear()
    try:
        assert tokens.count("twelve bytes") == 3
    finally:
        tokens._counter.cache_clear()


def test_long_and_broken_texts_are_estimated() -> None:
    assert tokens.count("a" * 4_000_000) == 1_000_000
    assert tokens.count("half \ud83d a pair") > 0


def test_it_estimates_a_request() -> None:
    request = {
        "messages": [
            {"role": "system", "content": "hello world"},
            {"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {}}]},
        ]
    }
    assert tokens.estimate_request(request) == 3 + (4 + 2) + (4 + 1 + tokens.PER_MEDIA_PART)
    with_tools = request | {"tools": [{"type": "function", "function": {"name": "weather", "parameters": {"a": 1}}}]}
    assert tokens.estimate_request(with_tools) > tokens.estimate_request(request)


@given(
    st.dictionaries(
        st.sampled_from(["messages", "tools"]),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["content", "text", "x"]), inner)
            ),
        ),
    )
)
def test_it_never_raises(request: dict[str, Any]) -> None:
    assert tokens.estimate_request(request) >= tokens.PER_REPLY
    assert tokens.guess_request(request) >= tokens.PER_REPLY


def test_a_guess_reads_lengths_only_and_is_near() -> None:
    request = {
        "messages": [
            {"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 50},
            {"role": "user", "content": [{"type": "text", "text": "日本語" * 20}, {"type": "image_url"}]},
        ],
        "tools": [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}],
    }
    exact, guess = tokens.estimate_request(request), tokens.guess_request(request)
    assert exact / 2 < guess < exact * 2
    assert tokens.guess_request({"messages": "nonsense", "tools": 1}) > 0
