"""How much a request may use: the cap on its output, and what to hold for it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from django.conf import settings

from gateway.catalogue.snapshot import ModelFacts
from gateway.errors import InvalidRequest
from gateway.limits.claims import Need
from gateway.limits.expectations import expectations
from gateway.limits.facts import Rule
from gateway.upstreams import tokens

CAPS = ("max_completion_tokens", "max_tokens")
HIDDEN_WORDS = 1_024
MEDIA = frozenset({"image_url", "input_audio", "file"})  # parts whose tokens have no bound that we know


def capped(body: dict[str, Any], facts: ModelFacts, lowered: int | None) -> tuple[dict[str, Any], int]:
    """The request with a cap on its output where it sets none, and the cap that is in force (0: none)."""
    if lowered is not None:
        return with_cap(body, lowered), lowered
    most = facts.max_output_tokens
    for name in CAPS:
        asked = body.get(name)
        if asked is None:
            continue
        if most is not None and asked > most:
            raise InvalidRequest(
                f"{name} is too large: {asked}. This model supports at most {most} completion tokens, "
                f"whereas you provided {asked}.",
                param=name,
                code="invalid_value",
            )
        return body, asked
    cap = min(settings.MAX_TOKENS or most or 0, most or settings.MAX_TOKENS)
    return ({**body, "max_tokens": cap}, cap) if cap else (body, 0)


def with_cap(request: dict[str, Any], cap: int) -> dict[str, Any]:
    set_already = [name for name in CAPS if request.get(name) is not None]
    return {**request, **dict.fromkeys(set_already or ["max_tokens"], cap)}


def fitting(request: dict[str, Any], cap: int, most: int | None) -> dict[str, Any]:
    """As a fallback gets it, whose own answers may have to be shorter."""
    return request if most is None or 0 < cap <= most else with_cap(request, most)


def need_of(request: dict[str, Any], rules: Sequence[Rule], key_id: int, model_id: int, cap: int) -> Need:
    """Expected and worst use. The worst case is worked out only where a hard limit asks for it."""
    hard = any(rule.hold == "hard" for rule in rules)
    choices = request.get("n") or 1
    return Need(
        input_expected=tokens.guess_request(request),
        output_expected=expectations.expect(key_id, model_id, cap) * choices,
        input_worst=_most_input(request) if hard else None,
        output_worst=cap * choices if hard and cap else None,
    )


def _most_input(request: dict[str, Any]) -> int | None:
    """No tokenizer makes more tokens than there are bytes; templates add some per message. None: media parts."""
    messages = request["messages"]
    for message in messages:
        content = message.get("content")
        if isinstance(content, list) and any(part.get("type") in MEDIA for part in content):
            return None
    told = {
        name: value
        for name, value in request.items()
        if name in ("messages", "tools", "functions", "response_format")
    }
    # A provider may tell its model how to call tools at all, or to keep to a schema, in words that it bills. Calls of
    # before are enough.
    tools = request.get("tools") or any(message.get("tool_calls") for message in messages)
    hidden = HIDDEN_WORDS if tools or request.get("response_format") else 0
    return len(orjson.dumps(told)) + 64 * (len(messages) + 1) + hidden
