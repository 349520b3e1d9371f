"""A request of OpenAI's in the words of Anthropic's Messages API (docs/protocols.md has the tables)."""

from __future__ import annotations

import re
from binascii import a2b_base64

from gateway.upstreams import asked
from gateway.upstreams.asked import Json, Tools, unsupported

MAX_TOKENS = 4096  # required there; for requests and models that set none
TRANSLATED = frozenset(
    {
        *("max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "tools", "tool_choice"),
        *("parallel_tool_calls", "response_format", "reasoning_effort"),
    }
)
# Tokens of thinking for models before 4.6; later ones take the word itself, and decide how much it is.
BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 24576, "max": 24576}
LEAST_BUDGET = 1024
# The first versions that decide themselves how much they think, know this word, and think before a forced call.
ADAPTIVE, XHIGH, FORCED = (4, 6), (4, 7), (4, 8)
MODEL = re.compile(r"claude-(?:[a-z]+-)?(\d+)(?:[-.](\d{1,2}))?(?!\d)")
CALL_ID = re.compile(r"[^a-zA-Z0-9_-]")


def messages_request(model: str, request: Json) -> Json:
    """The body but for `stream`. Raises InvalidRequest for what cannot be said."""
    asked.check_parameters(request, TRANSLATED)
    system, messages = _conversation(request["messages"])
    tools = asked.read_tools(request)
    answers = any(block["type"] == "tool_result" for block in messages[-1]["content"])
    thinking = _thinking(model, request, tools, answers=answers)
    thinks = "thinking" in thinking and request["reasoning_effort"] != "none"
    body: Json = {"model": model, "messages": messages, **_sampling(request, thinks=thinks)}
    body |= thinking | (_tools(tools) or _called(messages))
    if system:
        body["system"] = system
    if schema := _schema(request):
        body["output_config"] = {**body.get("output_config", {}), "format": {"type": "json_schema", "schema": schema}}
    if user := request.get("safety_identifier") or request.get("user"):
        body["metadata"] = {"user_id": user}
    return body


def _conversation(messages: list[Json]) -> tuple[str, list[Json]]:
    """(system prompt, turns): system messages go up from wherever they are, and neighbours of one role are one."""
    system: list[str] = []
    turns: list[Json] = []
    for index, message in enumerate(messages):
        path, role = f"messages[{index}]", message["role"]
        if role in ("system", "developer"):
            system.append(asked.plain_text(message, path).strip())
            continue
        if role == "function":
            raise unsupported(f"{path}.role", "Use 'tool'.", value=True)
        role, blocks = ("assistant", _said(message, path)) if role == "assistant" else ("user", _user(message, path))
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    if not turns:
        raise asked.no_turns()
    return "\n\n".join(filter(None, system)), turns


def _user(message: Json, path: str) -> list[Json]:
    if message["role"] == "tool":
        result = {"type": "tool_result", "tool_use_id": _call_id(message["tool_call_id"])}
        text = asked.plain_text(message, path)
        return [{**result, "content": text} if text.strip() else result]
    # Blank texts are refused, and say nothing.
    parts = [(part, where) for part, where in asked.parts_of(message, path) if part.get("text", "-").strip()]
    return [_block(part, where) for part, where in parts]


def _said(message: Json, path: str) -> list[Json]:
    text = asked.assistant_text(message, path).rstrip()  # refused with blanks at its end
    blocks: list[Json] = [{"type": "text", "text": text}] if text else []
    for index, call in enumerate(message.get("tool_calls") or []):
        given = asked.arguments_of(call, f"{path}.tool_calls[{index}]")
        blocks.append(
            {"type": "tool_use", "id": _call_id(call["id"]), "name": call["function"]["name"], "input": given}
        )
    return blocks


def _block(part: Json, path: str) -> Json:
    kind = part["type"]
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind == "image_url":
        url = part["image_url"]["url"]
        if found := asked.data_url(url, f"{path}.image_url.url"):
            return {"type": "image", "source": {"type": "base64", "media_type": found[0], "data": found[1]}}
        return {"type": "image", "source": {"type": "url", "url": url}}
    if kind == "file":
        return _document(part, path)
    raise unsupported(f"{path}.type", f"'{kind}' is not.", value=True)


def _document(part: Json, path: str) -> Json:
    media_type, data = asked.file_data(part, path)
    source = {"type": "base64", "media_type": media_type, "data": data}
    if media_type.startswith("text/"):
        text = a2b_base64(data).decode(errors="replace")
        source = {"type": "text", "media_type": "text/plain", "data": text}
    elif media_type != "application/pdf":
        raise unsupported(f"{path}.file.file_data", "Only PDF and text are.", value=True)
    name = part["file"].get("filename")
    return {"type": "document", "source": source} | ({"title": name} if name else {})


def _call_id(text: str) -> str:
    return CALL_ID.sub("_", text)


def _sampling(request: Json, *, thinks: bool) -> Json:
    """Defaults are left out: newer models refuse to be told even those, and thinking ones to be told any."""
    body: Json = {"max_tokens": asked.cap_of(request) or MAX_TOKENS}
    stops = asked.stops_of(request)
    for name in ("temperature", "top_p"):
        value = request.get(name)
        if value is not None and value < 1 and not thinks:  # 1 is the most there; OpenAI's temperature goes to 2
            body[name] = value
    if any(not stop.strip() for stop in stops):
        raise unsupported("stop", "A stop sequence must hold more than blanks.", value=True)
    return body | ({"stop_sequences": stops} if stops else {})


def _thinking(model: str, request: Json, tools: Tools, *, answers: bool) -> Json:
    """What reasoning_effort becomes; {} where thinking cannot be. It is a part of max_tokens. `answers`: the last
    turn is of tools, whatever the user says after them."""
    effort, cap = request.get("reasoning_effort"), asked.cap_of(request)
    if effort is None:
        return {}
    budget = BUDGETS.get(effort, 0)
    room = {} if cap else {"max_tokens": MAX_TOKENS + budget}
    found = MODEL.search(model)
    version = (int(found[1]), int(found[2] or 0)) if found else (0, 0)
    if version >= ADAPTIVE:
        if effort == "none":
            return {"thinking": {"type": "disabled"}}
        word = "high" if effort == "xhigh" and version < XHIGH else effort
        told = {"output_config": {"effort": "low" if word == "minimal" else word}}
        thinking = {"thinking": {"type": "adaptive", "display": "summarized"}}
        return room | told | ({} if tools.forced and version < FORCED else thinking)
    # Refused with a forced tool, and after calls whose own thinking is not sent back (clients do not keep it).
    if not budget or tools.forced or answers or (cap and cap <= LEAST_BUDGET):
        return {}
    if cap:
        budget = min(budget, max(LEAST_BUDGET, cap // 2))
    return room | {"thinking": {"type": "enabled", "budget_tokens": budget}}


def _called(messages: list[Json]) -> Json:
    """A conversation with calls in it is refused without their tools; OpenAI's clients need not send them again.
    None of them may be called any more."""
    blocks = [block for turn in messages for block in turn["content"] if block["type"] == "tool_use"]
    names = list(dict.fromkeys(block["name"] for block in blocks))
    tools = [{"name": name, "input_schema": {"type": "object"}} for name in names]
    return {"tools": tools, "tool_choice": {"type": "none"}} if tools else {}


def _tools(tools: Tools) -> Json:
    if not tools.functions:
        return {}
    body: Json = {"tools": [_tool(function) for function in tools.functions]}
    choice: Json = {"type": {"auto": "auto", "none": "none", "required": "any"}[tools.mode]}
    if tools.name:
        choice = {"type": "tool", "name": tools.name}
    if not tools.parallel and tools.mode != "none":
        choice["disable_parallel_tool_use"] = True
    return body if choice == {"type": "auto"} else body | {"tool_choice": choice}


def _tool(function: Json) -> Json:
    schema = function.get("parameters") or {}
    tool = {"name": function["name"], "input_schema": {"type": "object", **schema}}
    if description := function.get("description"):
        tool["description"] = description
    return tool | ({"strict": True} if function.get("strict") else {})


def _schema(request: Json) -> Json | None:
    kind, schema = asked.read_format(request)
    if kind == "json_object":
        raise unsupported("response_format", "Use 'json_schema' in place of 'json_object'.", value=True)
    if kind == "json_schema" and not schema:
        raise unsupported("response_format.json_schema", "It must have a schema.", value=True)
    return schema
