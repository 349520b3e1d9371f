"""A request of OpenAI's in the words of Gemini's generateContent (docs/protocols.md has the tables)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from mimetypes import guess_type
from urllib.parse import urlsplit

from gateway.upstreams import asked
from gateway.upstreams.asked import Json, Tools, unsupported
from gateway.upstreams.jsontext import loads

GENERATION = {
    "temperature": "temperature",
    "top_p": "topP",
    "n": "candidateCount",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "seed": "seed",
}
TRANSLATED = frozenset(
    {
        *GENERATION,
        *("max_tokens", "max_completion_tokens", "stop", "tools", "tool_choice", "parallel_tool_calls"),
        *("response_format", "reasoning_effort"),
    }
)
# Models before 3 take a number of tokens (Google's own table), later ones a word.
BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576, "max": 24576}
LEAST_BUDGET = 512  # that all of them take
LEVELS = {"none": "minimal", "xhigh": "high", "max": "high"}
MODEL = re.compile(r"gemini-(\d+)(?:\.(\d+))?")
NEWEST = (99, 0)  # of gemini-flash-latest and its like, which name no version
# Google's table: "minimal" is a word for the lighter models up to this one; all others refuse it.
LAST_MINIMAL = (3, 6)
INT32 = 2**31
# Gemini 3 wants each step's first call back with the signature that came with it. No client of OpenAI's keeps
# such a thing; this is the one that Google documents for conversations from elsewhere.
FOREIGN = "skip_thought_signature_validator"


def generate_request(model: str, request: Json) -> Json:
    """Raises InvalidRequest for what cannot be said."""
    asked.check_parameters(request, TRANSLATED)
    version = _version(model)
    system, contents = _conversation(request["messages"], signed=version >= (3, 0))
    body: Json = {"contents": contents, **_tools(asked.read_tools(request))}
    if system:
        body["systemInstruction"] = {"parts": [{"text": text} for text in system]}
    if config := _config(request) | _thinking(model, version, request):
        body["generationConfig"] = config
    return body


def _version(model: str) -> tuple[int, int]:
    """(0, 0) for a name that says none."""
    if found := MODEL.search(model):
        return int(found[1]), int(found[2] or 0)
    return NEWEST if model.endswith("-latest") else (0, 0)


def _conversation(messages: list[Json], *, signed: bool) -> tuple[list[str], list[Json]]:
    """(system texts, contents). The answers to calls made together belong into one content."""
    system: list[str] = []
    contents: list[Json] = []
    names: dict[str, str] = {}  # of functions, by call id
    before = ""
    for index, message in _in_order(messages):
        path, role = f"messages[{index}]", message["role"]
        if role in ("system", "developer"):
            system.append(asked.plain_text(message, path))
            continue
        if role == "function":
            raise unsupported(f"{path}.role", "Use 'tool'.", value=True)
        if role == "assistant":
            parts = _said(message, path, names, signed=signed)
        elif role == "tool":
            parts = [_result(message, path, names)]
        else:
            parts = [_part(part, where) for part, where in asked.parts_of(message, path)]
        if parts and role == before:
            contents[-1]["parts"] += parts
        elif parts:
            contents.append({"role": "model" if role == "assistant" else "user", "parts": parts})
            before = role
    if not contents:
        raise asked.no_turns()
    return [text for text in system if text], contents


def _in_order(messages: list[Json]) -> Iterator[tuple[int, Json]]:
    """Messages with their indexes, the answers of tools in the order of their calls: they have no ids there, so
    that two calls of one function are told apart by their places only."""
    places: dict[str, int] = {}
    for answers, group in groupby(enumerate(messages), key=lambda item: item[1]["role"] == "tool"):
        run = list(group)
        if answers:
            run.sort(key=lambda item: places.get(item[1]["tool_call_id"], 0))
        elif calls := run[-1][1].get("tool_calls"):
            places = {call["id"]: place for place, call in enumerate(calls)}
        yield from run


def _said(message: Json, path: str, names: dict[str, str], *, signed: bool) -> list[Json]:
    text = asked.assistant_text(message, path)
    parts: list[Json] = [{"text": text}] if text else []
    for index, call in enumerate(message.get("tool_calls") or []):
        given = asked.arguments_of(call, f"{path}.tool_calls[{index}]")
        names[call["id"]] = call["function"]["name"]
        part: Json = {"functionCall": {"name": call["function"]["name"], "args": given}}
        parts.append(part | {"thoughtSignature": FOREIGN} if signed and index == 0 else part)
    return parts


def _result(message: Json, path: str, names: dict[str, str]) -> Json:
    name = names.get(message["tool_call_id"])
    if name is None:
        raise asked.invalid(f"{path}.tool_call_id", "no call with this id was made before")
    text = asked.plain_text(message, path)
    try:
        # In an object "$ref" would name a part of the message; a tool that answers with a schema means none.
        said = None if '"$ref"' in text else loads(text.encode())
    except ValueError:
        said = None
    return {"functionResponse": {"name": name, "response": said if isinstance(said, dict) else {"output": text}}}


def _part(part: Json, path: str) -> Json:
    kind = part["type"]
    if kind == "text":
        return {"text": part["text"]}
    if kind == "image_url":
        url = part["image_url"]["url"]
        if found := asked.data_url(url, f"{path}.image_url.url"):
            return _inline(*found)
        guessed = guess_type(urlsplit(url).path)[0] or ""
        return {"fileData": {"mimeType": guessed if guessed.startswith("image/") else "image/jpeg", "fileUri": url}}
    if kind == "input_audio":
        return _inline(f"audio/{part['input_audio']['format']}", part["input_audio"]["data"])
    if kind == "file":
        return _inline(*asked.file_data(part, path))
    raise unsupported(f"{path}.type", f"'{kind}' is not.", value=True)


def _inline(media_type: str, data: str) -> Json:
    return {"inlineData": {"mimeType": media_type, "data": data}}


def _config(request: Json) -> Json:
    config: Json = {theirs: value for ours, theirs in GENERATION.items() if (value := request.get(ours)) is not None}
    if not -INT32 <= config.get("seed", 0) < INT32:
        raise unsupported("seed", "It must fit into 32 bits.", value=True)
    if cap := asked.cap_of(request):
        config["maxOutputTokens"] = cap
    if stops := asked.stops_of(request):
        config["stopSequences"] = stops
    kind, schema = asked.read_format(request)
    if kind != "text":
        config["responseMimeType"] = "application/json"
    if schema:
        config["responseJsonSchema"] = schema
    return config


def _thinking(model: str, version: tuple[int, int], request: Json) -> Json:
    """Thoughts come only to those who ask for them: models that cannot think refuse to be asked."""
    effort = request.get("reasoning_effort")
    if effort is None:
        return {}
    cap = asked.cap_of(request)  # thoughts are a part of it
    wanted: Json = {"thinkingBudget": min(BUDGETS[effort], max(LEAST_BUDGET, cap // 2) if cap else INT32)}
    if version >= (3, 0):
        level = LEVELS.get(effort, effort)
        lowest = "low" if "-pro" in model or version > LAST_MINIMAL else "minimal"
        wanted = {"thinkingLevel": lowest if level == "minimal" else level}
    return {"thinkingConfig": {**wanted, "includeThoughts": effort != "none"}}


def _tools(tools: Tools) -> Json:
    if not tools.functions:
        return {}
    if not tools.parallel and tools.mode != "none" and not tools.name:
        raise unsupported("parallel_tool_calls", "The model may always call several.", value=True)
    config: Json = {"mode": {"auto": "AUTO", "none": "NONE", "required": "ANY"}[tools.mode]}
    if tools.name:
        config["allowedFunctionNames"] = [tools.name]
    body: Json = {"tools": [{"functionDeclarations": [_declaration(function) for function in tools.functions]}]}
    return body if config["mode"] == "AUTO" else body | {"toolConfig": {"functionCallingConfig": config}}


def _declaration(function: Json) -> Json:
    declaration = {"name": function["name"]}
    if description := function.get("description"):
        declaration["description"] = description
    schema = function.get("parameters")
    return declaration | ({"parametersJsonSchema": schema} if schema else {})
