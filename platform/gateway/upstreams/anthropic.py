"""The adapter for Anthropic's Messages API: `{base_url}/messages`, where base_url ends in /v1.

anthropic_request.py is the way there, this file the way back: together they are too long for one. Cached input
is counted beside `input_tokens` there, and thinking inside `output_tokens`; `usage_of` puts both where OpenAI
has them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gateway.errors import GatewayError, InvalidRequest
from gateway.upstreams.adapter import HTTPAdapter, missing_version
from gateway.upstreams.anthropic_request import messages_request
from gateway.upstreams.asked import Json
from gateway.upstreams.base import Face, Target
from gateway.upstreams.client import Headers
from gateway.upstreams.events import Interpreted, StreamFault
from gateway.upstreams.faults import error_of
from gateway.upstreams.fields import text_of
from gateway.upstreams.jsontext import dumps
from gateway.upstreams.relay import Source
from gateway.upstreams.response import Response
from gateway.upstreams.usage import count_of, first_count

VERSION = "2023-06-01"
FINISHES = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}
# Some faults of our account come as 400, which would be the client's. Those speak to us; other refusals begin with a
# field, and may repeat in quotes what the client wrote.
OURS = re.compile(
    r"(?:your?|this)\b[^\"'`]*(?:credit balance is too low|usage limits?\b[^\"'`]{0,80}regain access|spend limit"
    r"|organization has been disabled)",
    re.IGNORECASE,
)
# Its refusals begin with the field that they are about, by its own name.
ABOUT = re.compile(r"[\"`]?(output_config\.\w+|[a-z_]+)")
PARAMS = {
    **{name: name for name in ("messages", "tools", "tool_choice", "max_tokens", "temperature", "top_p")},
    **{"system": "messages", "stop_sequences": "stop", "thinking": "reasoning_effort"},
    **{"output_config.effort": "reasoning_effort", "output_config.format": "response_format"},
}


class AnthropicAdapter(HTTPAdapter):
    def path(self, target: Target, *, stream: bool) -> str:
        return missing_version(target, "/v1") + "/messages"

    def models_path(self, target: Target) -> str:
        return missing_version(target, "/v1") + "/models?limit=1000"

    def headers(self, target: Target) -> Headers:
        version = (("anthropic-version", target.api_version or VERSION),)
        return (("x-api-key", target.credential), *version) if target.credential else version

    def body(self, target: Target, request: dict[str, Any], *, stream: bool) -> Json:
        return messages_request(target.upstream_model, request) | ({"stream": True} if stream else {})

    def answer(self, said: object) -> object:
        content = said.get("content") if isinstance(said, dict) else None
        if not isinstance(said, dict) or not isinstance(content, list):
            return said
        blocks = [block for block in content if isinstance(block, dict)]
        message = {
            "content": _joined(blocks, "text") or None,
            "reasoning": _joined(blocks, "thinking"),
            "tool_calls": [_call(block) for block in blocks if block.get("type") == "tool_use"],
        }
        finish = FINISHES.get(text_of(said.get("stop_reason")), "stop")
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return {"choices": [choice], "usage": usage_of(said.get("usage"))}

    def source(self, response: Response, target: Target, face: Face) -> Source:
        return Interpreted(
            response, _Events(), target, lambda status, body: self.fault(status, {}, body, target, face.model)
        )

    def fault(
        self, status: int, headers: Mapping[str, str], body: bytes, target: Target, public_model: str
    ) -> GatewayError:
        fault = super().fault(status, headers, body, target, public_model)
        if isinstance(fault, InvalidRequest) and (found := ABOUT.match(fault.message)):
            fault.param = fault.param or PARAMS.get(found[1])
        return fault

    def status_of(self, status: int, body: bytes) -> int:
        said = error_of(body) if status == 400 else None
        return 402 if said and OURS.match(str(said.get("message"))) else status


def usage_of(raw: object) -> Json | None:
    """Anthropic's `usage` as OpenAI's; None if it is not one that can be booked."""
    if not isinstance(raw, dict):
        return None
    uncached, output = count_of(raw.get("input_tokens")), count_of(raw.get("output_tokens"))
    if uncached is None or output is None:
        return None
    read = first_count(raw.get("cache_read_input_tokens"))
    written = first_count(raw.get("cache_creation_input_tokens"))
    details = raw.get("output_tokens_details")
    thinking = details.get("thinking_tokens") if isinstance(details, dict) else None
    return {
        "prompt_tokens": uncached + read + written,
        "completion_tokens": output,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": first_count(thinking)},
    }


def _joined(blocks: list[Json], kind: str) -> str:
    return "".join(text_of(block.get(kind)) for block in blocks if block.get("type") == kind)


def _call(block: Json, arguments: str | None = None) -> Json:
    text = dumps(block.get("input") or {}).decode() if arguments is None else arguments
    return {"id": block.get("id"), "type": "function", "function": {"name": block.get("name"), "arguments": text}}


class _Events:
    """events.Interpreter. What was put in is known from the first event on, what came out only at the end."""

    def __init__(self) -> None:
        self.done = False
        self._usage: Json = {}
        self._block: Json = {}  # the one that is open; blocks come one after the other
        self._calls = 0
        self._spoken = False  # of a call: arguments have come

    def chunks(self, event: Json) -> list[Json]:
        kind, delta = event.get("type"), event.get("delta")
        if kind == "content_block_delta" and isinstance(delta, dict):
            return self._delta(delta)
        if kind == "content_block_start" and isinstance(block := event.get("content_block"), dict):
            return self._start(block)
        if kind == "content_block_stop":
            return self._stop()
        if kind == "message_start" and isinstance(message := event.get("message"), dict):
            return self._begin(message.get("usage"))
        if kind == "message_delta":
            finish = text_of(delta.get("stop_reason")) if isinstance(delta, dict) else ""
            said = [_chunk({}, FINISHES.get(finish, "stop"))] if finish else []
            return said + self._end(event.get("usage"))
        if kind == "error":
            error = event.get("error")
            raise StreamFault(STATUSES.get(text_of(error.get("type") if isinstance(error, dict) else ""), 500), event)
        self.done = kind == "message_stop"
        return []

    def _start(self, block: Json) -> list[Json]:
        self._block, self._spoken = block, False
        if block.get("type") != "tool_use":
            return self._delta(block)
        self._calls += 1
        return [_chunk({"tool_calls": [{"index": self._calls - 1, **_call(block, "")}]})]

    def _delta(self, delta: Json) -> list[Json]:
        if text := text_of(delta.get("text")):
            return [_chunk({"content": text})]
        if text := text_of(delta.get("thinking")):
            return [_chunk({"reasoning": text})]
        text = text_of(delta.get("partial_json")) if self._block.get("type") == "tool_use" else ""
        return self._arguments(text) if text else []

    def _stop(self) -> list[Json]:
        """A call without arguments sends none, but clients parse them."""
        block, self._block = self._block, {}
        if block.get("type") != "tool_use" or self._spoken:
            return []
        return self._arguments(dumps(block.get("input") or {}).decode())

    def _arguments(self, text: str) -> list[Json]:
        self._spoken = True
        call = {"index": max(0, self._calls - 1), "function": {"arguments": text}}
        return [_chunk({"tool_calls": [call]})]

    def _begin(self, usage: object) -> list[Json]:
        """Its output_tokens are a first guess: until the end, what is delivered is counted here."""
        self._usage = {**usage, "output_tokens": None} if isinstance(usage, dict) else {}
        return _report({**self._usage, "output_tokens": 0})

    def _end(self, usage: object) -> list[Json]:
        """Totals so far, of which some may be left out; servers of others say 0 then, which takes nothing back."""
        said = usage if isinstance(usage, dict) else {}
        known = {name: value for name, value in said.items() if value or self._usage.get(name) is None}
        return _report(self._usage | {name: value for name, value in known.items() if value is not None})


def _report(usage: Json) -> list[Json]:
    found = usage_of(usage)
    return [{"choices": [], "usage": found}] if found else []


def _chunk(delta: Json, finish: str | None = None) -> Json:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
