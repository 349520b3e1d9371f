"""Small checks that the tables of `chat`, `messages` and `tools` are made of.

A check takes a decoded JSON value and its path and returns the value to forward, or raises one of `faults`.
It costs a type test and a comparison when all is well. Each carries its JSON schema, so that the
documentation under /docs is made from the same table that decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from apiv1.schemas import faults

Check = Callable[[Any, str], Any]
Schema = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    check: Check
    schema: Schema


def boolean() -> Rule:
    def check(value: Any, path: str) -> Any:
        if value is True or value is False:
            return value
        raise faults.wrong_type(path, "a boolean", value)

    return Rule(check, {"type": "boolean"})


def number(low: int, high: int) -> Rule:
    """A JSON number in low..high; booleans are none."""

    def check(value: Any, path: str) -> Any:
        if type(value) is not float and type(value) is not int:
            raise faults.wrong_type(path, "a decimal", value)
        if value > high:
            raise faults.too_high(path, "decimal", high, value)
        if value < low:
            raise faults.too_low(path, "decimal", low, value)
        return value

    return Rule(check, {"type": "number", "minimum": low, "maximum": high})


def integer(low: int, high: int) -> Rule:
    """A whole number in low..high. 10.0 is one, as for OpenAI, and is forwarded as 10; true is none."""

    def check(value: Any, path: str) -> Any:
        if type(value) is not int:
            if type(value) is not float or not value.is_integer():
                raise faults.wrong_type(path, "an integer", value)
            value = int(value)
        if value > high:
            raise faults.too_high(path, "integer", high, value)
        if value < low:
            raise faults.too_low(path, "integer", low, value)
        return value

    return Rule(check, {"type": "integer", "minimum": low, "maximum": high})


def string(*, low: int = 0, high: int | None = None, pattern: str | None = None) -> Rule:
    match = re.compile(pattern.removesuffix("$") + r"\Z" if pattern else "", re.ASCII).match

    def check(value: Any, path: str) -> Any:
        if type(value) is not str:
            raise faults.wrong_type(path, "a string", value)
        if len(value) < low:
            raise faults.empty_string(path)
        if high is not None and len(value) > high:
            raise faults.long_string(path, high, len(value))
        if pattern is not None and match(value) is None:
            raise faults.bad_pattern(path, pattern)
        return value

    limits = {"minLength": low or None, "maxLength": high, "pattern": pattern}
    return Rule(check, {"type": "string", **{name: limit for name, limit in limits.items() if limit is not None}})


def choice(*allowed: str) -> Rule:
    known = frozenset(allowed)

    def check(value: Any, path: str) -> Any:
        if type(value) is not str:
            raise faults.wrong_type(path, "a string", value)
        if value not in known:
            raise faults.bad_value(path, value, allowed)
        return value

    return Rule(check, {"type": "string", "enum": list(allowed)})


def anything() -> Rule:
    return Rule(lambda value, path: value, {})


def mapping() -> Rule:
    """An object whose inside is the upstream's business (a JSON schema)."""

    def check(value: Any, path: str) -> Any:
        if type(value) is not dict:
            raise faults.wrong_type(path, "an object", value)
        return value

    return Rule(check, {"type": "object"})


def array(item: Rule, *, low: int = 0, high: int | None = None, of: str = "an array") -> Rule:
    check_item = item.check

    def check(value: Any, path: str) -> Any:
        if type(value) is not list:
            raise faults.wrong_type(path, of, value)
        if len(value) < low:
            raise faults.empty_array(path)
        if high is not None and len(value) > high:
            raise faults.long_array(path, high, len(value))
        return [check_item(entry, f"{path}[{index}]") for index, entry in enumerate(value)]

    limits = {"minItems": low or None, "maxItems": high}
    return Rule(
        check,
        {"type": "array", "items": item.schema}
        | {name: limit for name, limit in limits.items() if limit is not None},
    )


def record(required: Mapping[str, Rule], optional: Mapping[str, Rule] | None = None) -> Rule:
    """An object with these keys; null means absent for the optional ones. Other keys are left alone."""
    needed = [(name, rule.check) for name, rule in required.items()]
    others = [(name, rule.check) for name, rule in (optional or {}).items()]

    def check(value: Any, path: str) -> Any:
        if type(value) is not dict:
            raise faults.wrong_type(path, "an object", value)
        for name, check_part in needed:
            if name not in value:
                raise faults.missing(f"{path}.{name}")
            value[name] = check_part(value[name], f"{path}.{name}")
        for name, check_part in others:
            part = value.get(name)
            if part is not None:
                value[name] = check_part(part, f"{path}.{name}")
        return value

    properties = {name: rule.schema for name, rule in {**required, **(optional or {})}.items()}
    return Rule(check, {"type": "object", "required": list(required), "properties": properties})


def variants(tag: str, rules: Mapping[str, Rule]) -> Rule:
    """An object whose form depends on the string under `tag`."""
    checks = {name: rule.check for name, rule in rules.items()}
    allowed = tuple(rules)

    def check(value: Any, path: str) -> Any:
        if type(value) is not dict:
            raise faults.wrong_type(path, "an object", value)
        if tag not in value:
            raise faults.missing(f"{path}.{tag}")
        kind = value[tag]
        if type(kind) is not str:
            raise faults.wrong_type(f"{path}.{tag}", "a string", kind)
        check_kind = checks.get(kind)
        if check_kind is None:
            raise faults.bad_value(f"{path}.{tag}", kind, allowed)
        return check_kind(value, path)

    forms = [_tagged(rule.schema, tag, name) for name, rule in rules.items()]
    return Rule(check, {"oneOf": forms})


def _tagged(schema: Schema, tag: str, name: str) -> Schema:
    return {
        **schema,
        "required": [tag, *schema.get("required", [])],
        "properties": {tag: {"type": "string", "enum": [name]}, **schema.get("properties", {})},
    }


def either(text: Rule, other: Rule, *, expected: str) -> Rule:
    """A string by one rule, an array or an object by another; `expected` names both."""
    check_text, check_other = text.check, other.check
    shape = list if other.schema.get("type") == "array" else dict

    def check(value: Any, path: str) -> Any:
        if type(value) is str:
            return check_text(value, path)
        if type(value) is not shape:
            raise faults.wrong_type(path, expected, value)
        return check_other(value, path)

    return Rule(check, {"oneOf": [text.schema, other.schema]})
