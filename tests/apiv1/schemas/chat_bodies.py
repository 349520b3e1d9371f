"""Chat requests, right but for what a test changes."""

from __future__ import annotations

import json
from typing import Any

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "acme-chat", "messages": [USER], **changes}


def message(**changes: Any) -> dict[str, Any]:
    return body(messages=[{**USER, **changes}])


def part(**content: Any) -> dict[str, Any]:
    return message(content=[content])


def answering(*rest: dict[str, Any]) -> dict[str, Any]:
    return body(messages=[USER, *rest])


def dumped(sent: Any) -> bytes:
    """By the standard library, which writes integers of any size."""
    return json.dumps(sent).encode()
