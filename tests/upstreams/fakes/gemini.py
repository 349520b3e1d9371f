"""Google's Gemini API, v1beta, as it documents its answers, events and errors."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.upstream import Served
from tests.upstream_scripts import Script, body
from tests.upstreams.fakes.fake import Fake, Json, Refused, events

PATH = re.compile(r"/v1beta/models/([\w.-]+):(generateContent|streamGenerateContent\?alt=sse)")
NEW = re.compile(r"gemini-(?:3|[a-z-]+-latest)")
MINIMAL = re.compile(r"gemini-3(?:\.[1-6])?-flash")
FIELDS = {"contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "safetySettings"}
CONFIG = {
    *("temperature", "topP", "topK", "candidateCount", "maxOutputTokens", "stopSequences", "seed"),
    *("presencePenalty", "frequencyPenalty", "responseMimeType", "responseJsonSchema", "thinkingConfig"),
}
PART = {"text", "inlineData", "fileData", "functionCall", "functionResponse", "thoughtSignature", "thought"}
USAGE: Json = {
    "promptTokenCount": 40,
    "cachedContentTokenCount": 30,
    "candidatesTokenCount": 12,
    "thoughtsTokenCount": 0,
    "totalTokenCount": 52,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 40}],
}
HELLO: list[Json] = [{"text": "Hello "}, {"text": "there."}]
THOUGHT: Json = {"text": "The user greets me.", "thought": True}
CALL: Json = {
    "functionCall": {"name": "get_weather", "args": {"location": "Paris, FR"}},
    "thoughtSignature": "EjQKMgEM",
}


def answer(parts: list[Json], finish: str | None = "STOP", usage: Json | None = None, **more: Any) -> Json:
    candidate: Json = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    head = {"modelVersion": "gemini-2.5-flash", "responseId": "mAitaLmkHPPlz7IPvtfUqQ4"}
    return {"candidates": [candidate], "usageMetadata": USAGE if usage is None else usage, **head, **more}


def event(said: Json) -> bytes:
    return b"data: " + json.dumps(said).encode() + b"\r\n\r\n"


def bare(said: Json) -> bytes:
    """An error in a stream that has begun: over several lines, and no event at all."""
    return json.dumps(said, indent=2).encode()


def stream(parts: list[Json], usage: Json | None = None) -> list[bytes]:
    """One event per part; the totals so far are in each, the output's only when there is some."""
    usage = usage or USAGE
    early = {name: usage[name] for name in ("promptTokenCount", "promptTokensDetails")}
    early["totalTokenCount"] = usage["promptTokenCount"]
    sent = [event(answer([part], None, early)) for part in parts[:-1]]
    return [*sent, event(answer(parts[-1:], "STOP", usage))]


def error(code: int, status: str, text: str, *details: Json) -> Json:
    said: Json = {"code": code, "message": text, "status": status}
    return {"error": said | ({"details": list(details)} if details else {})}


class GeminiFake(Fake):
    base = "/v1beta"
    key = "AIzaSyOfTheProvider0123456789"

    def check(self, request: Served) -> None:
        path = request.target.split(" ")[1]
        if not PATH.fullmatch(path) and path != "/v1beta/models?pageSize=1000":
            raise Refused(404, error(404, "NOT_FOUND", f"{path} is not found for API version v1beta"))
        if request.headers.get("x-goog-api-key") != self.key or "authorization" in request.headers:
            reason = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
            text = "API key not valid. Please pass a valid API key."
            raise Refused(400, error(400, "INVALID_ARGUMENT", text, reason))
        if request.target.startswith("POST "):
            found = PATH.fullmatch(path)
            assert found
            _check_body(request.body)
            _check_thinking(found[1], request.body.get("generationConfig", {}).get("thinkingConfig", {}))
            _check_contents(request.body["contents"], signed=bool(NEW.match(found[1])))

    def answer(self, request: Served) -> Script:
        said = request.body
        thinks = said.get("generationConfig", {}).get("thinkingConfig", {}).get("includeThoughts")
        mode = said.get("toolConfig", {}).get("functionCallingConfig", {}).get("mode")
        calls = "tools" in said and mode != "NONE" and "functionResponse" not in said["contents"][-1]["parts"][0]
        parts = ([THOUGHT] if thinks else []) + ([CALL] if calls else HELLO)
        usage = USAGE | ({"thoughtsTokenCount": 8, "totalTokenCount": 60} if thinks else {})
        if ":stream" in request.target:
            return events(*stream(parts, usage))
        whole = answer(parts, usage=usage)
        count = said.get("generationConfig", {}).get("candidateCount", 1)
        whole["candidates"] = [{**whole["candidates"][0], "index": number} for number in range(count)]
        return body(whole)

    def models(self) -> Json:
        names = ("models/gemini-2.5-flash", "models/gemini-3-pro-preview")
        return {"models": [{"name": name, "supportedGenerationMethods": ["generateContent"]} for name in names]}


def _invalid(text: str) -> Refused:
    return Refused(400, error(400, "INVALID_ARGUMENT", text))


def _known(said: Json, names: set[str], where: str) -> None:
    for name in said:
        if name not in names:
            raise _invalid(f'Invalid JSON payload received. Unknown name "{name}" at {where!r}: Cannot find field.')


def _check_body(said: Json) -> None:
    _known(said, FIELDS, "")
    config = said.get("generationConfig", {})
    _known(config, CONFIG, "generation_config")
    if not said.get("contents"):
        raise _invalid("* GenerateContentRequest.contents: contents is not specified")
    if "responseJsonSchema" in config and config.get("responseMimeType") != "application/json":
        raise _invalid("response_schema is only supported with response_mime_type application/json")
    if not 1 <= config.get("candidateCount", 1) <= 8:
        raise _invalid("generation_config.candidate_count must be in range [1, 8]")
    declared = [item for tool in said.get("tools", []) for item in tool["functionDeclarations"]]
    for declaration in declared:
        _known(declaration, {"name", "description", "parametersJsonSchema"}, "tools[0].function_declarations[0]")
    calling = said.get("toolConfig", {}).get("functionCallingConfig", {})
    if calling.get("allowedFunctionNames") and calling["mode"] != "ANY":
        raise _invalid("Allowed function names can only be set when mode is ANY.")


def _check_thinking(model: str, thinking: Json) -> None:
    if {"thinkingBudget", "thinkingLevel"} <= set(thinking):
        raise _invalid("You can only set only one of thinking budget and thinking level.")
    level = thinking.get("thinkingLevel")
    if level and not NEW.match(model):
        raise _invalid("Thinking level is not supported for this model.")
    if level not in (None, "low", "medium", "high") and not (level == "minimal" and MINIMAL.match(model)):
        raise _invalid(f"Thinking level {level.upper()} is not supported for this model.")
    if thinking.get("thinkingBudget") == 0 and "pro" in model:
        raise _invalid("Budget 0 is invalid. This model only works in thinking mode.")


def _check_contents(contents: list[Json], *, signed: bool) -> None:
    calls = 0
    for number, content in enumerate(contents):
        if content["role"] not in ("user", "model") or not content["parts"]:
            raise _invalid("Please use a valid role: user, model.")
        for part in content["parts"]:
            _known(part, PART, f"contents[{number}].parts[0]")
            if part.get("text") == "":
                raise _invalid("Unable to submit request because it must have a text parameter.")
        answers = [part["functionResponse"] for part in content["parts"] if "functionResponse" in part]
        if len(answers) != calls or any(not isinstance(item["response"], dict) for item in answers):
            raise _invalid(
                "Please ensure that the number of function response parts is equal to the number of function call "
                "parts of the function call turn."
            )
        if any('"$ref":' in json.dumps(item["response"]) for item in answers):
            raise _invalid("The referenced name in function_response.response does not match to a display_name.")
        called = [part for part in content["parts"] if "functionCall" in part]
        calls = len(called)
        if called and (not number or contents[number - 1]["role"] != "user"):
            raise _invalid("Please ensure that function call turn comes immediately after a user turn.")
        if signed and called and "thoughtSignature" not in called[0]:
            raise _invalid("Function call is missing a thought_signature in functionCall parts.")
