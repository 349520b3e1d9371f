"""Anthropic's Messages API, versions 2023-06-01 and 2026-10-21, as it documents its answers, events and errors."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.upstream import Served
from tests.upstream_scripts import Script, body
from tests.upstreams.fakes.fake import Fake, Json, Refused, events

FIELDS = {
    *("model", "messages", "max_tokens", "system", "temperature", "top_p", "top_k", "stop_sequences", "stream"),
    *("tools", "tool_choice", "thinking", "metadata", "output_config", "service_tier"),
}
USAGE: Json = {
    "input_tokens": 25,
    "cache_creation_input_tokens": 100,
    "cache_read_input_tokens": 300,
    "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 15,
    "output_tokens_details": {"thinking_tokens": 0},
    "service_tier": "standard",
}
HELLO: Json = {"type": "text", "text": "Hello there."}
THOUGHT: Json = {"type": "thinking", "thinking": "The user greets me.", "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"}
CALL: Json = {
    "type": "tool_use",
    "id": "toolu_01T1x1fJ34qAmk2tNTrN7Up6",
    "name": "get_weather",
    "input": {"location": "Paris, FR"},
}
DOCUMENTS = (("base64", "application/pdf"), ("text", "text/plain"))
DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "partial_json": "input_json_delta"}


def message(content: list[Json], **changes: Any) -> Json:
    said = {
        "id": "msg_013Zva2CMHLNnjNjtJKqJ2EF",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5-20250929",
        "content": content,
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": USAGE,
    }
    return said | changes


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def stream(content: list[Json], stop_reason: str = "end_turn", usage: Json | None = None) -> list[bytes]:
    """A whole message as its events, with the pings and half-said numbers of the real ones."""
    usage = usage or USAGE
    begun = message([], stop_reason=None, usage={**usage, "output_tokens": 2})
    sent = [event("message_start", message=begun), event("ping")]
    for index, block in enumerate(content):
        sent += _block(index, block)
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    totals = {name: usage[name] for name in ("output_tokens", "output_tokens_details") if name in usage}
    return [*sent, event("message_delta", delta=delta, usage=totals), event("message_stop")]


def error(kind: str, text: str) -> Json:
    return {
        "type": "error",
        "error": {"type": kind, "message": text},
        "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy",
    }


class AnthropicFake(Fake):
    key = "sk-ant-api03-of-the-provider"

    def check(self, request: Served) -> None:
        headers, said = request.headers, request.body
        path = request.target.split(" ")[1]
        if path not in ("/v1/messages", "/v1/models?limit=1000"):
            raise Refused(404, error("not_found_error", "Not found"))
        if headers.get("x-api-key", headers.get("authorization", "").removeprefix("Bearer ")) != self.key:
            raise Refused(401, error("authentication_error", "invalid x-api-key"))
        if headers.get("anthropic-version") not in ("2023-06-01", "2026-10-21"):
            raise _invalid("anthropic-version: header is required")
        if headers["anthropic-version"] == "2026-10-21" and {"temperature", "top_p", "top_k"} & set(said):
            raise _invalid("temperature: Extra inputs are not permitted")
        if request.target.startswith("POST "):
            _check_body(said)
            _check_tools(said)
            _check_turns(said["messages"])
            _check_thinking(said)

    def answer(self, request: Served) -> Script:
        said = request.body
        content = [THOUGHT] if said.get("thinking", {}).get("type") in ("enabled", "adaptive") else []
        calls = said.get("tools") and said.get("tool_choice", {}).get("type") != "none"
        calls = calls and said["messages"][-1]["content"][0]["type"] != "tool_result"
        content, reason = ([*content, CALL], "tool_use") if calls else ([*content, HELLO], "end_turn")
        usage = USAGE | {"output_tokens_details": {"thinking_tokens": 6 if THOUGHT in content else 0}}
        if said.get("stream"):
            return events(*stream(content, reason, usage))
        return body(message(content, stop_reason=reason, usage=usage))

    def models(self) -> Json:
        names = ("claude-sonnet-4-5-20250929", "claude-haiku-4-5-20251001")
        data = [
            {"type": "model", "id": name, "display_name": name, "created_at": "2025-09-29T00:00:00Z"}
            for name in names
        ]
        return {"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]}


def _block(index: int, block: Json) -> list[bytes]:
    empty: Json = (
        {**block, "input": {}} if block["type"] == "tool_use" else {"type": block["type"], block["type"]: ""}
    )
    if block["type"] == "thinking":
        empty["signature"] = ""
    name = "partial_json" if block["type"] == "tool_use" else block["type"]
    text = json.dumps(block["input"]) if block["type"] == "tool_use" else block[block["type"]]
    half = len(text) // 2
    pieces = [{"type": DELTAS[name], name: piece} for piece in ("", text[:half], text[half:])]
    if "signature" in block:
        pieces.append({"type": "signature_delta", "signature": block["signature"]})
    sent = [event("content_block_delta", index=index, delta=piece) for piece in pieces]
    return [
        event("content_block_start", index=index, content_block=empty),
        *sent,
        event("content_block_stop", index=index),
    ]


def _invalid(text: str) -> Refused:
    return Refused(400, error("invalid_request_error", text))


def _check_body(said: Json) -> None:
    for name in said:
        if name not in FIELDS:
            raise _invalid(f"{name}: Extra inputs are not permitted")
    for name, kind in (("model", str), ("messages", list), ("max_tokens", int)):
        if not isinstance(said.get(name), kind):
            raise _invalid(f"{name}: Field required")
    if not 0 <= said.get("temperature", 1) <= 1:
        raise _invalid("temperature: range: 0..1")
    if said["max_tokens"] < 1 or not said["messages"]:
        raise _invalid("messages: at least one message is required")
    if any(not stop.strip() for stop in said.get("stop_sequences", [])):
        raise _invalid("stop_sequences: each stop sequence must contain non-whitespace")
    if not said.get("system", "-").strip():
        raise _invalid("system: text content blocks must be non-empty")
    if {"temperature", "top_p"} <= set(said) and _version(said) >= (4, 1):
        raise _invalid("`temperature` and `top_p` cannot both be specified for this model. Please use only one.")
    if said["messages"][-1]["role"] == "assistant" and _version(said) >= (4, 6):
        raise _invalid("This model does not support assistant message prefill.")


def _check_tools(said: Json) -> None:
    for number, tool in enumerate(said.get("tools", [])):
        if not {"name", "input_schema"} <= set(tool) <= {"name", "input_schema", "description", "strict"}:
            raise _invalid(f"tools.{number}.custom.input_schema: Field required")
        if tool["input_schema"].get("type") != "object":
            raise _invalid(f"tools.{number}.custom.input_schema.type: Input should be 'object'")
    if "tool_choice" in said and "tools" not in said:
        raise _invalid("tool_choice: may only be specified while providing tools")
    kinds = {block["type"] for turn in said["messages"] for block in turn["content"]}
    if kinds & {"tool_use", "tool_result"} and "tools" not in said:
        raise _invalid("Requests which include `tool_use` or `tool_result` blocks must define tools.")
    if _forced(said) and _version(said) >= (5, 5):
        raise _invalid(f"{said['model']} does not support forced tool_choice; use auto or none")


def _forced(said: Json) -> bool:
    return said.get("tool_choice", {}).get("type") in ("any", "tool")


def _version(said: Json) -> tuple[int, int]:
    found = re.match(r"claude-(?:[a-z]+-)?(\d)(?:-(\d))?(?!\d)", said["model"])
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def _check_turns(messages: list[Json]) -> None:
    asked: set[str] = set()
    for number, turn in enumerate(messages):
        if set(turn) != {"role", "content"} or turn["role"] not in ("user", "assistant") or not turn["content"]:
            raise _invalid(f"messages.{number}.role: Input should be 'user' or 'assistant'")
        if number and messages[number - 1]["role"] == turn["role"]:
            raise _invalid('messages: roles must alternate between "user" and "assistant"')
        answers = [block["tool_use_id"] for block in turn["content"] if block["type"] == "tool_result"]
        first = turn["content"][: len(answers)]
        if set(answers) != asked or any(block["type"] != "tool_result" for block in first):
            raise _invalid(
                f"messages.{number}: `tool_use` ids were found without `tool_result` blocks immediately after"
            )
        asked = {block["id"] for block in turn["content"] if block["type"] == "tool_use"}
        for place, block in enumerate(turn["content"]):
            _check_block(block, f"messages.{number}.content.{place}")


def _check_block(block: Json, path: str) -> None:
    if not block.get("text" if block["type"] == "text" else "content", "-").strip():
        raise _invalid("messages: text content blocks must be non-empty")
    if block["type"] == "tool_use" and not isinstance(block["input"], dict):
        raise _invalid(f"{path}.tool_use.input: Input should be a valid dictionary")
    source = block.get("source", {})
    kind = source.get("media_type")
    images = ("image/jpeg", "image/png", "image/gif", "image/webp")
    if block["type"] == "image" and source["type"] == "base64" and kind not in images:
        raise _invalid(f"{path}.image.source.base64.media_type: Input should be 'image/jpeg', 'image/png', …")
    if source.get("type") == "url" and not source["url"].startswith("https://"):
        raise _invalid(f"{path}.image.source.url.url: Only HTTPS URLs are supported.")
    if block["type"] == "document" and (source["type"], kind) not in DOCUMENTS:
        raise _invalid(f"{path}.document.source.base64.media_type: Input should be 'application/pdf'")


def _check_thinking(said: Json) -> None:
    thinking, version = said.get("thinking", {"type": "disabled"}), _version(said)
    effort = said.get("output_config", {}).get("effort")
    if effort and (version < (4, 5) or effort not in ("low", "medium", "high", "xhigh", "max")):
        raise _invalid("output_config.effort: Input should be 'low', 'medium', 'high', 'xhigh' or 'max'")
    if effort == "xhigh" and version < (4, 7):
        raise _invalid("This model does not support effort level 'xhigh'.")
    unsupported = {"disabled": version >= (5, 5) and "thinking" in said, "enabled": version >= (4, 7)}
    if (unsupported | {"adaptive": version < (4, 6)})[thinking["type"]]:
        raise _invalid(f'"thinking.type.{thinking["type"]}" is not supported for this model.')
    if thinking["type"] == "disabled":
        return
    if said.get("temperature", 1) != 1:
        raise _invalid("`temperature` may only be set to 1 when thinking is enabled.")
    if _forced(said) and version < (4, 8):
        raise _invalid("Thinking may not be enabled when tool_choice forces tool use.")
    if thinking["type"] == "adaptive":
        return
    if not 1024 <= thinking["budget_tokens"] < said["max_tokens"]:
        raise _invalid("`max_tokens` must be greater than `thinking.budget_tokens`.")
    if any(block["type"] == "tool_result" for block in said["messages"][-1]["content"]):
        raise _invalid("Expected `thinking` or `redacted_thinking`, but found `tool_use`.")
