"""The fields of messages and deltas, as providers write them and as OpenAI does.

Everything here takes JSON that may hold anything and raises nothing but UpstreamError.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from gateway.errors import UpstreamError
from gateway.upstreams.jsontext import dumps

FINISH_REASONS = {"stop", "length", "tool_calls", "content_filter", "function_call"}
OTHER_NAMES = {
    "max_tokens": "length",
    "max_length": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "insufficient_system_resource": "length",  # DeepSeek cut the answer short
    "tool_use": "tool_calls",
    "tool_call": "tool_calls",
    "safety": "content_filter",
    "refusal": "content_filter",
    "recitation": "content_filter",
    "sensitive": "content_filter",
}
GAVE_UP = {"error", "abort", "network_error"}  # OpenRouter, vLLM, GLM


def finish_reason(value: object) -> str | None:
    """One of OpenAI's; None while the choice goes on. Raises UpstreamError if the provider gave up."""
    if not isinstance(value, str) or not value:
        return None
    if value in FINISH_REASONS:
        return value
    if value.lower() in GAVE_UP:
        raise UpstreamError("The model's provider gave up before the answer was complete.")
    return OTHER_NAMES.get(value.lower(), "stop")


def texts(message: dict[str, Any]) -> tuple[str | None, str]:
    """(content, reasoning) of a message or delta; content is None when there is none."""
    content, thoughts = message.get("content"), ""
    if isinstance(content, list):  # Mistral: parts, of which some are thoughts
        content, thoughts = _parts(content)
    for name in ("reasoning", "reasoning_content"):
        value = message.get(name)
        if isinstance(value, str) and value:
            thoughts = value
            break
    return content if isinstance(content, str) else None, thoughts


def reasoning_fields(text: str, field: str) -> dict[str, str]:
    """Reasoning under the name (or both names) that the model's clients expect."""
    names = ("reasoning", "reasoning_content") if field == "both" else (field,)
    return dict.fromkeys(names, text)


def tool_calls(value: object) -> list[dict[str, Any]]:
    """The calls of a whole message, complete with id and type; [] if there are none."""
    calls = []
    for item in value if isinstance(value, list) else []:
        if isinstance(item, dict) and (call := _call(item)):
            calls.append({"id": text_of(item.get("id")) or new_call_id(), **call})
    return calls


def arguments(value: object) -> str:
    """Arguments are JSON *text*; some providers send the object itself."""
    if value is None:
        return ""
    return value if isinstance(value, str) else dumps(value).decode()


def new_call_id() -> str:
    return f"call_{uuid4().hex[:24]}"


def text_of(value: object) -> str:
    return value if isinstance(value, str) else ""


def whole_number(value: object, default: int) -> int:
    return value if type(value) is int and value >= 0 else default


def _call(item: dict[str, Any]) -> dict[str, Any] | None:
    custom, function = item.get("custom"), item.get("function")
    if isinstance(custom, dict):
        return {
            "type": "custom",
            "custom": {"name": text_of(custom.get("name")), "input": text_of(custom.get("input"))},
        }
    if isinstance(function, dict):
        named = {"name": text_of(function.get("name")), "arguments": arguments(function.get("arguments")) or "{}"}
        return {"type": "function", "function": named}
    return None


def _parts(content: list[Any]) -> tuple[str | None, str]:
    said, thought = [], []
    for part in content:
        if not isinstance(part, dict):
            continue
        if part.get("type") == "thinking":
            inner = part.get("thinking")
            pieces = inner if isinstance(inner, list) else [{"text": inner}]
            thought += [text_of(piece.get("text")) for piece in pieces if isinstance(piece, dict)]
        else:
            said.append(text_of(part.get("text")))
    return "".join(said) if said else None, "".join(thought)
