"""Tools, functions and the choice among them: `tools`, `tool_choice`, `functions`, `function_call`."""

from __future__ import annotations

from typing import Any

from apiv1.schemas import faults
from apiv1.schemas.checks import Rule, array, boolean, choice, either, mapping, record, string, variants

NAME = string(low=1, high=64, pattern="^[a-zA-Z0-9_-]+$")
TEXT = string()
FUNCTION = record({"name": NAME}, {"description": TEXT, "parameters": mapping(), "strict": boolean()})
GRAMMAR = record({"grammar": record({"definition": TEXT, "syntax": choice("lark", "regex")})})
CUSTOM = record(
    {"name": NAME},
    {"description": TEXT, "format": variants("type", {"text": record({}), "grammar": GRAMMAR})},
)
TOOL = variants("type", {"function": record({"function": FUNCTION}), "custom": record({"custom": CUSTOM})})
NAMED = record({"name": TEXT})
TOOL_CHOICE = either(
    choice("none", "auto", "required"),
    variants(
        "type",
        {
            "function": record({"function": NAMED}),
            "custom": record({"custom": NAMED}),
            "allowed_tools": record(
                {
                    "allowed_tools": record(
                        {
                            "mode": choice("auto", "required"),
                            "tools": array(mapping(), low=1, of="an array of objects"),
                        }
                    )
                }
            ),
        },
    ),
    expected="one of a string or object",
)

RULES: dict[str, Rule] = {
    "tools": array(TOOL, low=1, high=128, of="an array of objects"),
    "tool_choice": TOOL_CHOICE,
    "parallel_tool_calls": boolean(),
    "functions": array(
        record({"name": NAME}, {"description": TEXT, "parameters": mapping()}),
        low=1,
        high=128,
        of="an array of objects",
    ),
    "function_call": either(choice("none", "auto"), NAMED, expected="one of a string or object"),
}


def check_choices(body: dict[str, Any]) -> None:
    """A choice must be among what is offered. "none" is harmless without tools."""
    chosen = body.get("tool_choice")
    if chosen is not None and chosen != "none":
        tools = body.get("tools")
        if tools is None:
            raise faults.clash(
                "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
                "tool_choice",
            )
        if type(chosen) is dict:
            _check_chosen(chosen, tools)
    call = body.get("function_call")
    if call is not None and call != "none":
        _check_function_call(call, body.get("functions"))


def _check_chosen(chosen: dict[str, Any], tools: list[dict[str, Any]]) -> None:
    offered = {(tool["type"], tool[tool["type"]]["name"]) for tool in tools}
    kind = chosen["type"]
    wanted = chosen["allowed_tools"]["tools"] if kind == "allowed_tools" else [chosen]
    for tool in wanted:
        kind = tool.get("type")
        inner = tool.get(kind) if type(kind) is str else None
        name = inner.get("name") if type(inner) is dict else None
        if type(name) is str and (kind, name) not in offered:
            raise faults.clash(
                f"Invalid value for 'tool_choice': no {kind} named '{faults.shortened(name)}' "
                "was specified in the 'tools' parameter.",
                "tool_choice",
            )


def _check_function_call(call: Any, functions: list[dict[str, Any]] | None) -> None:
    if functions is None:
        raise faults.clash(
            "Invalid value for 'function_call': 'function_call' is only allowed when 'functions' are specified.",
            "function_call",
        )
    if type(call) is dict and call["name"] not in {function["name"] for function in functions}:
        raise faults.clash(
            f"Invalid value for 'function_call': no function named '{faults.shortened(call['name'])}' "
            "was specified in the 'functions' parameter.",
            "function_call",
        )
