"""What is wrong with a request, in OpenAI's own sentences (openai-wire.md 2, "Validation answers").

Two kinds, because clients of the guide want 422 for the first (FORMAT_ERROR_STATUS):
  MalformedBody   the form is wrong: not JSON, no object, a required parameter missing, a wrong JSON type
  InvalidRequest  the form is right, a value is not: range, enum, length, pattern, unknown key, a clash
Both are 400 by default, as OpenAI's. `path` is OpenAI's `param`, such as `messages[2].content[0].type`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.errors import InvalidRequest, MalformedBody

NOT_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
    "library correctly. The API expects a JSON payload, but what was sent was not valid JSON.)"
)
NO_MODEL = "you must provide a model parameter"
ECHOED = 200  # characters of a client's value that an error message repeats at most


def not_json() -> MalformedBody:
    return MalformedBody(NOT_JSON)


def not_an_object(value: Any) -> MalformedBody:
    return MalformedBody(f"Invalid request body: expected an object, but got {article(value)} instead.")


def no_model() -> MalformedBody:
    return MalformedBody(NO_MODEL)


def missing(path: str) -> MalformedBody:
    return MalformedBody(f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter")


def wrong_type(path: str, expected: str, value: Any) -> MalformedBody:
    return MalformedBody(
        f"Invalid type for '{path}': expected {expected}, but got {article(value)} instead.",
        param=path,
        code="invalid_type",
    )


def unknown(path: str) -> InvalidRequest:
    path = shortened(path)
    return InvalidRequest(f"Unknown parameter: '{path}'.", param=path, code="unknown_parameter")


def bad_value(path: str, value: Any, allowed: Sequence[str]) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value: '{shortened(str(value))}'. Supported values are: {listed(allowed)}.",
        param=path,
        code="invalid_value",
    )


def bad_pattern(path: str, pattern: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{path}': string does not match pattern. Expected a string that matches the pattern '{pattern}'.",
        param=path,
        code="invalid_value",
    )


def bad_url(path: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{path}'. Expected a valid URL, but got a value with an invalid format.",
        param=path,
        code="invalid_value",
    )


def too_high(path: str, kind: str, limit: float, value: float) -> InvalidRequest:
    """`kind` is "integer" or "decimal"."""
    return InvalidRequest(
        f"Invalid '{path}': {kind} above maximum value. Expected a value <= {limit}, but got {value} instead.",
        param=path,
        code=f"{kind}_above_max_value",
    )


def too_low(path: str, kind: str, limit: float, value: float) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{path}': {kind} below minimum value. Expected a value >= {limit}, but got {value} instead.",
        param=path,
        code=f"{kind}_below_min_value",
    )


def empty_array(path: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{path}': empty array. Expected an array with minimum length 1, but got an empty array instead.",
        param=path,
        code="empty_array",
    )


def long_array(path: str, limit: int, length: int) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{path}': array too long. Expected an array with maximum length {limit}, "
        f"but got an array with length {length} instead.",
        param=path,
        code="array_above_max_length",
    )


def large_object(path: str, limit: int, size: int) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{path}': too many properties. Expected an object with at most {limit} properties, "
        f"but got an object with {size} properties instead.",
        param=path,
        code="object_above_max_properties",
    )


def long_string(path: str, limit: int, length: int) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{path}': string too long. Expected a string with maximum length {limit}, "
        f"but got a string with length {length} instead.",
        param=path,
        code="string_above_max_length",
    )


def empty_string(path: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{path}': empty string. Expected a string with minimum length 1, but got an empty string instead.",
        param=path,
        code="string_below_min_length",
    )


def clash(message: str, param: str, code: str | None = None) -> InvalidRequest:
    """Parameters that are right one by one and wrong together."""
    return InvalidRequest(message, param=param, code=code)


def article(value: Any) -> str:
    """A JSON value's type, as OpenAI names it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, list):
        return "an array" if value else "an empty array"
    names = {str: "a string", int: "an integer", float: "a decimal number", dict: "an object"}
    return names[type(value)]


def listed(names: Sequence[str]) -> str:
    """'a', 'b', and 'c'."""
    quoted = [f"'{name}'" for name in names]
    if len(quoted) < 3:
        return " and ".join(quoted)
    return f"{', '.join(quoted[:-1])}, and {quoted[-1]}"


def shortened(text: str) -> str:
    return text if len(text) <= ECHOED else text[:ECHOED] + "…"
