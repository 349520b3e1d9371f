"""The `messages` of a chat request: roles, content parts, tool calls and the answers to them.

Clients send assistant messages back as they received them, so nulls and keys that we do not know
(`reasoning`, `reasoning_content`, `annotations`, …) are kept and never refused. Paths are built only when
something is wrong, or where a table of `checks` takes over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apiv1.schemas import faults
from apiv1.schemas.checks import Rule, array, choice, record, string, variants

TEXT = string()


def _url(value: Any, path: str) -> Any:
    value = TEXT.check(value, path)
    if not value[:8].lower().startswith(("http://", "https://", "data:")):
        raise faults.bad_url(path)
    return value


def _file(value: Any, path: str) -> Any:
    value = FILE_FIELDS.check(value, path)
    if value.get("file_id") is None and value.get("file_data") is None:
        raise faults.missing(f"{path}.file_id")
    return value


FILE_FIELDS = record({}, {"file_id": TEXT, "file_data": TEXT, "filename": TEXT})
PART = variants(
    "type",
    {
        "text": record({"text": TEXT}),
        "image_url": record(
            {
                "image_url": record(
                    {"url": Rule(_url, {"type": "string", "description": "http(s): or data: URL"})},
                    {"detail": choice("auto", "low", "high", "original")},
                )
            }
        ),
        "input_audio": record({"input_audio": record({"data": TEXT, "format": choice("wav", "mp3")})}),
        "refusal": record({"refusal": TEXT}),
        "file": record({"file": Rule(_file, FILE_FIELDS.schema)}),
    },
)
PARTS = array(PART, low=1, of="an array of objects")
CALLED = record({"name": TEXT, "arguments": TEXT})
TOOL_CALL = variants(
    "type",
    {
        "function": record({"id": TEXT, "function": CALLED}),
        "custom": record({"id": TEXT, "custom": record({"name": TEXT, "input": TEXT})}),
    },
)
TOOL_CALLS = array(TOOL_CALL, low=1, of="an array of objects")
AUDIO = record({"id": TEXT})
# What an assistant message may have in place of content. The last three are other servers' reasoning.
INSTEAD = (
    "tool_calls",
    "function_call",
    "refusal",
    "audio",
    "reasoning",
    "reasoning_content",
    "reasoning_details",
)
Message = dict[str, Any]


def check_messages(value: Any, path: str = "messages") -> Any:
    if type(value) is not list:
        raise faults.wrong_type(path, "an array of objects", value)
    if not value:
        raise faults.empty_array(path)
    answers = False
    for index, message in enumerate(value):
        if type(message) is not dict:
            raise faults.wrong_type(f"{path}[{index}]", "an object", message)
        role = message.get("role")
        check = ROLES.get(role) if type(role) is str else None
        if check is None:
            raise _bad_role(message, f"{path}[{index}].role")
        check(message, index)
        name = message.get("name")
        if name is not None and type(name) is not str:
            raise faults.wrong_type(f"{path}[{index}].name", "a string", name)
        answers = answers or role == "tool"
    if answers:
        _check_answers(value)
    return value


def _bad_role(message: Message, path: str) -> Exception:
    role = message.get("role")
    if "role" not in message:
        return faults.missing(path)
    if type(role) is not str:
        return faults.wrong_type(path, "a string", role)
    return faults.bad_value(path, role, tuple(ROLES))


def _check_content(message: Message, index: int) -> None:
    content = message.get("content")
    if type(content) is str:
        return
    path = f"messages[{index}].content"
    if type(content) is list:
        message["content"] = PARTS.check(content, path)
    elif "content" not in message:
        raise faults.missing(path)
    else:
        raise faults.wrong_type(path, "one of a string or array of objects", content)


def _check_assistant(message: Message, index: int) -> None:
    path = f"messages[{index}]"
    calls = message.get("tool_calls")
    if calls is not None:
        message["tool_calls"] = TOOL_CALLS.check(calls, f"{path}.tool_calls")
    for name, rule in (("function_call", CALLED), ("refusal", TEXT), ("audio", AUDIO)):
        if (value := message.get(name)) is not None:
            rule.check(value, f"{path}.{name}")
    if message.get("content") is not None:
        _check_content(message, index)
    elif all(message.get(name) is None for name in INSTEAD):
        raise faults.clash("Invalid value for 'content': expected a string, got null.", f"messages.[{index}].content")


def _check_tool(message: Message, index: int) -> None:
    path = f"messages[{index}].tool_call_id"
    if "tool_call_id" not in message:
        raise faults.missing(path)
    TEXT.check(message["tool_call_id"], path)
    _check_content(message, index)


def _check_function(message: Message, index: int) -> None:
    # The guide's clients leave `name` out, and OpenAI's send null where a function returned nothing.
    if message.get("content") is not None or "content" not in message:
        _check_content(message, index)


ROLES: dict[str, Callable[[Message, int], None]] = {
    "system": _check_content,
    "assistant": _check_assistant,
    "user": _check_content,
    "function": _check_function,
    "tool": _check_tool,
    "developer": _check_content,
}
RULE = Rule(
    check_messages,
    {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["role"],
            "properties": {
                "role": {"type": "string", "enum": list(ROLES)},
                "content": {"oneOf": [{"type": "string"}, PARTS.schema, {"type": "null"}]},
                "name": {"type": "string"},
                "reasoning": {"type": "string"},
                "tool_calls": TOOL_CALLS.schema,
                "tool_call_id": {"type": "string"},
            },
        },
    },
)


def _check_answers(messages: list[Message]) -> None:
    """A tool message must answer a call of the assistant message before it; others may come between."""
    asked: set[str] | None = None
    for index, message in enumerate(messages):
        if message["role"] != "tool":
            calls = message.get("tool_calls") if message["role"] == "assistant" else None
            asked = {call["id"] for call in calls} if calls else None
        elif asked is None:
            raise faults.clash(
                "Invalid parameter: messages with role 'tool' must be a response to a preceeding message "
                "with 'tool_calls'.",
                f"messages.[{index}].role",
            )
        elif message["tool_call_id"] not in asked:
            raise faults.clash(
                f"Invalid parameter: 'tool_call_id' of '{faults.shortened(message['tool_call_id'])}' "
                "not found in 'tool_calls' of previous message.",
                f"messages.[{index}].tool_call_id",
            )
