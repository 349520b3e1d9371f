"""gateway.sizing: what a request may use at most."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gateway.sizing import HIDDEN_WORDS, need_of
from tests.upstreams.fakes.spoken import ANSWERED, ASKED, GREETING, WEATHER


def most_input(**request: Any) -> int:
    rule: Any = SimpleNamespace(hold="hard")
    found = need_of({"model": "acme-chat", **request}, [rule], key_id=1, model_id=1, cap=10).input_worst
    assert found is not None
    return found


def test_the_words_that_providers_add_are_bounded_too() -> None:
    """They tell their models how tools are called, also where only calls of before are there, and of schemas."""
    assert most_input(messages=[GREETING]) < HIDDEN_WORDS
    assert most_input(messages=[GREETING], tools=[WEATHER]) > HIDDEN_WORDS
    assert most_input(messages=[GREETING, ASKED, ANSWERED]) > HIDDEN_WORDS
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    assert most_input(messages=[GREETING], response_format=schema) > HIDDEN_WORDS
