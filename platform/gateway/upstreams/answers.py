"""A provider's whole answer, as OpenAI's `chat.completion` (openai-wire §3)."""

from __future__ import annotations

from typing import Any

from gateway.errors import UpstreamError
from gateway.upstreams.base import Answer, Face, Usage
from gateway.upstreams.fields import finish_reason, reasoning_fields, text_of, texts, tool_calls, whole_number
from gateway.upstreams.frames import known_fields
from gateway.upstreams.jsontext import dumps
from gateway.upstreams.meter import Meter
from gateway.upstreams.tokens import estimate_request
from gateway.upstreams.usage import parse_usage, usage_body

FAILED = "The model's provider sent an answer that cannot be read."


def answer_of(said: object, request: dict[str, Any], face: Face) -> Answer:
    """Raises UpstreamError unless it is an answer. Only what OpenAI's format knows goes to the client."""
    if not isinstance(said, dict) or said.get("error"):
        raise UpstreamError(FAILED)
    found = said.get("choices")
    choices = [choice for choice in found if isinstance(choice, dict)] if isinstance(found, list) else []
    if not choices:
        raise UpstreamError(FAILED)
    meter = Meter()
    rendered = [_choice(choice, number, face, meter) for number, choice in enumerate(choices)]
    usage = parse_usage(said.get("usage"))
    if usage is None or ("timings" in said and len(choices) > 1):  # llama.cpp reports its first choice only
        usage = _estimate(request, meter)
    body = {
        "id": face.id,
        "object": "chat.completion",
        "created": face.created,
        "model": face.model,
        "choices": rendered,
        "usage": usage_body(usage, None if usage.estimated else said.get("usage")),
        **known_fields(said),
    }
    return Answer(dumps(body), usage)


def _choice(said: dict[str, Any], number: int, face: Face, meter: Meter) -> dict[str, Any]:
    found, logprobs = said.get("message"), said.get("logprobs")
    message = _message(found if isinstance(found, dict) else {}, face, meter)
    reason = finish_reason(said.get("finish_reason"))
    return {
        "index": whole_number(said.get("index"), number),
        "message": message,
        "logprobs": logprobs if isinstance(logprobs, dict) and logprobs else None,
        "finish_reason": reason or ("tool_calls" if "tool_calls" in message else "stop"),
    }


def _message(said: dict[str, Any], face: Face, meter: Meter) -> dict[str, Any]:
    content, reasoning = texts(said)
    refusal, annotations = text_of(said.get("refusal")) or None, said.get("annotations")
    message: dict[str, Any] = {"role": "assistant"}
    if reasoning:
        message |= reasoning_fields(reasoning, face.reasoning_field)
        meter.add_reasoning(reasoning)
    calls, function, audio = tool_calls(said.get("tool_calls")), said.get("function_call"), said.get("audio")
    if calls or function or audio or refusal:
        content = content or None
    elif content is None:
        content = ""  # null is only for answers that are something else than text
    message |= {
        "content": content,
        "refusal": refusal,
        "annotations": annotations if isinstance(annotations, list) else [],
    }
    meter.add_output((content or "") + (refusal or ""))
    if calls:
        message["tool_calls"] = calls
        meter.add_output("".join(dumps(call.get("function") or call.get("custom")).decode() for call in calls))
    if isinstance(function, dict):
        message["function_call"] = function
        meter.add_output(dumps(function).decode())
    if isinstance(audio, dict):
        message["audio"] = audio
    return message


def _estimate(request: dict[str, Any], meter: Meter) -> Usage:
    output, reasoning = meter.counts()
    return Usage(estimate_request(request), output_tokens=output, reasoning_tokens=reasoning, estimated=True)
