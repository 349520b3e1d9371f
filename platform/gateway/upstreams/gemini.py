"""The adapter for Google's Gemini API: `{base_url}/models/MODEL:generateContent`, where base_url ends in /v1beta.

gemini_request.py is the way there, this file the way back: together they are too long for one. Thoughts are
counted beside `candidatesTokenCount` there, and cached input inside `promptTokenCount`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from gateway.errors import GatewayError
from gateway.upstreams.adapter import HTTPAdapter, missing_version
from gateway.upstreams.asked import Json
from gateway.upstreams.base import Face, Target
from gateway.upstreams.client import Headers
from gateway.upstreams.events import Interpreted, StreamFault
from gateway.upstreams.fields import new_call_id, text_of, whole_number
from gateway.upstreams.gemini_request import generate_request
from gateway.upstreams.jsontext import dumps, loads
from gateway.upstreams.relay import Source
from gateway.upstreams.response import Response
from gateway.upstreams.usage import count_of, first_count

FINISHES = {
    "STOP": "stop",
    "FINISH_REASON_UNSPECIFIED": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    # No answer, or a broken one. An empty success would be charged and trusted; this fails the request.
    "MALFORMED_FUNCTION_CALL": "error",
    "UNEXPECTED_TOOL_CALL": "error",
    "TOO_MANY_TOOL_CALLS": "error",
    "MALFORMED_RESPONSE": "error",
    "MISSING_THOUGHT_SIGNATURE": "error",
    "PUP_LIMITED_DISABLED": "error",  # our account is not allowed to go on
}
WITHHELD = "content_filter"  # SAFETY, RECITATION, PROHIBITED_CONTENT, … and whatever comes new
DELAY = re.compile(r"(\d{1,6}(?:\.\d{1,9})?)s")
# Faults of our account that come as 400, which would be the client's.
OURS = ("API_KEY_INVALID", "FAILED_PRECONDITION")


class GeminiAdapter(HTTPAdapter):
    def path(self, target: Target, *, stream: bool) -> str:
        name = target.upstream_model if "/" in target.upstream_model else f"models/{target.upstream_model}"
        method = "streamGenerateContent?alt=sse" if stream else "generateContent"
        return f"{missing_version(target, '/v1beta')}/{quote(name)}:{method}"

    def models_path(self, target: Target) -> str:
        return missing_version(target, "/v1beta") + "/models?pageSize=1000"

    def headers(self, target: Target) -> Headers:
        return (("x-goog-api-key", target.credential),) if target.credential else ()

    def body(self, target: Target, request: dict[str, Any], *, stream: bool) -> Json:
        return generate_request(target.upstream_model, request)

    def model_names(self, said: object) -> list[str]:
        found = said.get("models") if isinstance(said, dict) else None
        names = [item.get("name") for item in found if isinstance(item, dict)] if isinstance(found, list) else []
        return [name.removeprefix("models/") for name in names if isinstance(name, str)]

    def answer(self, said: object) -> object:
        if not isinstance(said, dict) or said.get("error"):
            return said
        choices = []
        for index, candidate in _candidates(said):
            delta, calls = _delta(candidate, 0)
            message = {"content": None} | delta
            finish = _finish(candidate, calls) or "stop"
            choices.append({"index": index, "message": message, "finish_reason": finish})
        return {"choices": choices or _blocked(said, "message"), "usage": usage_of(said.get("usageMetadata"))}

    def source(self, response: Response, target: Target, face: Face) -> Source:
        return Interpreted(
            response, _Events(), target, lambda status, body: self.fault(status, {}, body, target, face.model)
        )

    def fault(
        self, status: int, headers: Mapping[str, str], body: bytes, target: Target, public_model: str
    ) -> GatewayError:
        for detail in _details(_error(body)):  # google.rpc.RetryInfo: the delay is in the body
            if found := DELAY.fullmatch(text_of(detail.get("retryDelay"))):
                headers = {"retry-after": str(math.ceil(float(found[1])))} | dict(headers)
        return super().fault(status, headers, body, target, public_model)

    def status_of(self, status: int, body: bytes) -> int:
        error = _error(body)
        said = {text_of(error.get("status")), *(text_of(detail.get("reason")) for detail in _details(error))}
        return 403 if status == 400 and not said.isdisjoint(OURS) else status


def usage_of(raw: object) -> Json | None:
    """Gemini's `usageMetadata` as OpenAI's `usage`; None if it is not one that can be booked."""
    if not isinstance(raw, dict) or (prompt := count_of(raw.get("promptTokenCount"))) is None:
        return None
    thoughts, tools = first_count(raw.get("thoughtsTokenCount")), first_count(raw.get("toolUsePromptTokenCount"))
    total = first_count(raw.get("totalTokenCount"))
    output = count_of(raw.get("candidatesTokenCount", max(0, total - prompt - tools - thoughts)))
    if output is None:
        return None
    if total == prompt + tools + output:  # some count the thoughts inside
        thoughts = min(thoughts, output)
        output -= thoughts
    return {
        "prompt_tokens": prompt + tools,
        "completion_tokens": output + thoughts,
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": first_count(raw.get("cachedContentTokenCount"))},
        "completion_tokens_details": {"reasoning_tokens": thoughts},
    }


class _Events:
    """events.Interpreter. There is no last event: a stream is whole when its candidates have a finishReason."""

    def __init__(self) -> None:
        self.done = False
        self._calls: dict[int, int] = {}  # by candidate
        self._spoken = False

    def chunks(self, event: Json) -> list[Json]:
        if isinstance(error := event.get("error"), dict):
            code = error.get("code")
            raise StreamFault(code if type(code) is int and 400 <= code < 600 else 500, event)
        choices = []
        for index, candidate in _candidates(event):
            delta, calls = _delta(candidate, self._calls.get(index, 0))
            self._calls[index] = calls
            choices.append({"index": index, "delta": delta, "finish_reason": _finish(candidate, calls)})
        before, self._spoken = self._spoken, self._spoken or bool(choices)
        choices = choices or _blocked(event, "delta")
        said: list[Json] = [{"choices": choices}] if choices else []
        usage = usage_of(event.get("usageMetadata"))
        if usage is None:
            return said
        report: list[Json] = [{"choices": [], "usage": usage}]
        # Each event repeats the totals so far. One that leaves the output out must not make it 0: it tells of the
        # input only, and that once.
        if usage["completion_tokens"] or "candidatesTokenCount" in event["usageMetadata"] or not self._spoken:
            return said + report
        return said if before else report + said


def _candidates(said: Json) -> list[tuple[int, Json]]:
    found = said.get("candidates")
    candidates = [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
    return [(whole_number(item.get("index"), number), item) for number, item in enumerate(candidates)]


def _delta(candidate: Json, calls: int) -> tuple[Json, int]:
    """(what a candidate says, in OpenAI's fields; how many calls it has made with these)."""
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    delta: Json = {}
    for part in parts if isinstance(parts, list) else []:
        if not isinstance(part, dict):
            continue
        if isinstance(call := part.get("functionCall"), dict):
            named = {"name": text_of(call.get("name")), "arguments": dumps(call.get("args") or {}).decode()}
            item = {"index": calls, "id": new_call_id(), "type": "function", "function": named}
            delta.setdefault("tool_calls", []).append(item)
            calls += 1
        elif text := text_of(part.get("text")):
            name = "reasoning" if part.get("thought") else "content"
            delta[name] = delta.get(name, "") + text
    return delta, calls


def _finish(candidate: Json, calls: int) -> str | None:
    reason = text_of(candidate.get("finishReason"))
    if not reason:
        return None
    finish = FINISHES.get(reason, WITHHELD)
    return "tool_calls" if finish == "stop" and calls else finish


def _blocked(said: Json, field: str) -> list[Json]:
    """A prompt that was refused has no candidate; it is billed, so it is an answer."""
    feedback = said.get("promptFeedback")
    reason = text_of(feedback.get("blockReason")) if isinstance(feedback, dict) else ""
    if not reason:
        return []
    refusal = "The prompt was blocked by the model's safety filter."
    return [{"index": 0, field: {"content": None, "refusal": refusal}, "finish_reason": WITHHELD}]


def _error(body: bytes) -> Json:
    try:
        said = loads(body)
    except ValueError:
        return {}
    if isinstance(said, list) and said:
        said = said[0]
    error = said.get("error") if isinstance(said, dict) else None
    return error if isinstance(error, dict) else {}


def _details(error: Json) -> list[Json]:
    found = error.get("details")
    return [detail for detail in found if isinstance(detail, dict)] if isinstance(found, list) else []
