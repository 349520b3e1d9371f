"""Azure OpenAI: deployments behind an api-version, and the v1 API; answers annotated by the content filter."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.upstream import Served
from tests.upstream_scripts import Script, body
from tests.upstreams.fakes.fake import Fake, Json, Refused, events

PATH = re.compile(r"/openai/deployments/([\w%.-]+)/chat/completions\?api-version=(\d{4}-\d\d-\d\d(?:-preview)?)")
LIST = re.compile(r"/openai/models\?api-version=\d{4}-\d\d-\d\d")
V1 = ("/openai/v1/chat/completions", "/openai/v1/models")
SAFE: Json = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}
USAGE: Json = {
    "prompt_tokens": 20,
    "completion_tokens": 9,
    "total_tokens": 29,
    "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 16},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}
CALL: Json = {
    "id": "call_Ok2VtWVl0eRbGvLbqWm0h3Tf",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"location": "Paris, FR"}'},
}
HEAD: Json = {
    "id": "chatcmpl-AzUrE",
    "created": 1748442807,
    "model": "gpt-4o-2024-11-20",
    "system_fingerprint": "fp_ee1d74bde0",
}
PROMPT: list[Json] = [{"prompt_index": 0, "content_filter_results": SAFE}]


def message(said: Json, finish: str) -> Json:
    choice = {"index": 0, "message": said, "finish_reason": finish, "logprobs": None, "content_filter_results": SAFE}
    return {**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE, "prompt_filter_results": PROMPT}


def chunk(delta: Json | None, finish: str | None = None, **top: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    if delta:
        choice["content_filter_results"] = SAFE if delta.get("content") else {}
    said = {**HEAD, "object": "chat.completion.chunk", "choices": [] if delta is None else [choice], "usage": None}
    return b"data: " + json.dumps(said | top).encode() + b"\n\n"


def stream(said: Json, finish: str, *, usage: bool) -> list[bytes]:
    """The first chunk is about the prompt only, and has neither an id nor a choice."""
    nameless = {"id": "", "created": 0, "model": "", "object": "", "prompt_filter_results": PROMPT}
    sent = [chunk(None, **nameless), chunk({"role": "assistant", "content": "", "refusal": None})]
    if text := said.get("content"):
        sent += [chunk({"content": piece}) for piece in (text[:6], text[6:])]
    for number, call in enumerate(said.get("tool_calls", [])):
        opening = {"index": number, **call, "function": {"name": call["function"]["name"], "arguments": ""}}
        sent.append(chunk({"tool_calls": [opening]}))
        arguments = {"index": number, "function": {"arguments": call["function"]["arguments"]}}
        sent.append(chunk({"tool_calls": [arguments]}))
    sent.append(chunk({}, finish))
    return [*sent, *([chunk(None, usage=USAGE)] if usage else []), b"data: [DONE]\n\n"]


def error(code: str, text: str, **more: Any) -> Json:
    return {"error": {"code": code, "message": text, **more}}


class AzureFake(Fake):
    base = ""
    key = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
    deployments = ("chat-prod", "gpt-4o", "gpt-5")

    def check(self, request: Served) -> None:
        path = request.target.split(" ")[1]
        found = PATH.fullmatch(path)
        if not found and not LIST.fullmatch(path) and path not in V1:
            raise Refused(404, error("404", "Resource not found"))
        if request.headers.get("api-key") != self.key or "authorization" in request.headers:
            text = "Access denied due to invalid subscription key or wrong API endpoint."
            raise Refused(401, error("401", text))
        name = found[1] if found else request.body.get("model")
        if request.target.startswith("POST ") and name not in self.deployments:
            text = "The API deployment for this resource does not exist."
            raise Refused(404, error("DeploymentNotFound", text))
        if name == "gpt-5" and "max_tokens" in request.body:
            text = "Unsupported parameter: 'max_tokens' is not supported with this model. "
            said = error("unsupported_parameter", text + "Use 'max_completion_tokens' instead.", param="max_tokens")
            raise Refused(400, said)

    def answer(self, request: Served) -> Script:
        said = request.body
        calls = said.get("tools") and said.get("tool_choice") != "none" and said["messages"][-1]["role"] != "tool"
        spoken: Json = {"role": "assistant", "content": None if calls else "Hello there.", "refusal": None}
        if calls:
            spoken["tool_calls"] = [CALL]
        finish = "tool_calls" if calls else "stop"
        if said.get("stream"):
            return events(
                *stream(spoken, finish, usage=bool((said.get("stream_options") or {}).get("include_usage")))
            )
        return body(message(spoken, finish))

    def models(self) -> Json:
        return {"object": "list", "data": [{"id": "gpt-4o-2024-11-20", "object": "model", "status": "succeeded"}]}
