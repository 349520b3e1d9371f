"""One value of the file, read strictly. YAML's own guesses (no -> False, 010 -> 8, 0.15 -> a float) are refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, date, datetime, time
from typing import Any

import yaml

from gateway.catalogue.apply.document import line_of
from gateway.catalogue.pricing import parse_amount
from gateway.catalogue.services import fits_header
from tenants.currencies import MINOR_UNITS

Read = Callable[[yaml.Node], Any]
_TAG = "tag:yaml.org,2002:"
_ENVIRONMENT = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")


class BadValue(ValueError):
    """The text is for people; `line` is where the value stands."""

    def __init__(self, node: yaml.Node, text: str) -> None:
        super().__init__(text)
        self.line = line_of(node)


def _scalar(node: yaml.Node, expected: str) -> tuple[str, str]:
    """(kind, text) of a scalar; kind is YAML's own guess: str, int, float, bool, null, timestamp."""
    if not isinstance(node, yaml.ScalarNode):
        raise BadValue(node, f"Expected {expected}.")
    return node.tag.removeprefix(_TAG), str(node.value)


def text(node: yaml.Node) -> str:
    kind, value = _scalar(node, "text")
    if kind == "null":
        raise BadValue(node, 'Expected text; leave the field out, or write "" for none.')
    if kind != "str":
        raise BadValue(node, f'YAML does not read {value} as text. Quote it: "{value}".')
    if "\x00" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise BadValue(node, "Text cannot hold null characters or halves of surrogate pairs.")
    return value


def texts(node: yaml.Node) -> list[str]:
    if not isinstance(node, yaml.SequenceNode):
        raise BadValue(node, "Expected a list, such as [one, two].")
    return list(dict.fromkeys(text(item) for item in node.value))


def whole(node: yaml.Node) -> int:
    kind, value = _scalar(node, "a whole number")
    if kind != "int" or not re.fullmatch(r"-?(0|[1-9][0-9]*)", value):
        raise BadValue(node, f"{value!r} is not a whole number.")
    return int(value)


def whole_or_none(node: yaml.Node) -> int | None:
    return None if _scalar(node, "a whole number")[0] == "null" else whole(node)


def truth(node: yaml.Node) -> bool:
    kind, value = _scalar(node, "true or false")
    if kind != "bool" or value.lower() not in ("true", "false"):
        raise BadValue(node, f"{value!r} is neither true nor false.")
    return value.lower() == "true"


def choice(options: Collection[str]) -> Read:
    def read(node: yaml.Node) -> str:
        value = text(node)
        if value not in options:
            raise BadValue(node, f"{value!r} is not one of {', '.join(options)}.")
        return value

    return read


def money(node: yaml.Node) -> int:
    """Nano-units, from a quoted decimal string."""
    kind, value = _scalar(node, 'an amount, such as "0.15"')
    if kind in ("float", "int"):
        raise BadValue(node, f'Amounts are quoted, since YAML would make a rounded float of them: "{value}".')
    if kind != "str" or not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", value):
        raise BadValue(node, f'{value!r} is not an amount, such as "0.15".')
    if value.startswith("-"):
        raise BadValue(node, f"A price cannot be negative: {value}.")
    try:
        return parse_amount(value)
    except ValueError as exc:
        raise BadValue(node, f"{exc}.") from exc


def currency(node: yaml.Node) -> str:
    value = text(node)
    if value not in MINOR_UNITS:
        raise BadValue(node, f"{value!r} is not an ISO 4217 currency, such as USD or EUR.")
    return value


def moment(node: yaml.Node) -> datetime:
    """A day (its first moment in UTC) or a moment with its offset."""
    kind, value = _scalar(node, "a day, such as 2026-01-01")
    try:
        if kind in ("timestamp", "str"):
            if re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
                return datetime.combine(date.fromisoformat(value), time.min, UTC)
            at = datetime.fromisoformat(value)
            if at.tzinfo is not None:
                return at.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise BadValue(node, f"{value!r} is neither a day (2026-01-01) nor a moment with its offset (…T12:00:00+01:00).")


def credential(environ: Mapping[str, str]) -> Read:
    """The value of $NAME. A secret that stands in the file itself is refused; "" means none."""

    def read(node: yaml.Node) -> str:
        value = text(node)
        if not value:
            return ""
        match = _ENVIRONMENT.fullmatch(value)
        if match is None:
            raise BadValue(node, "Secrets do not stand in this file: write $NAME, and set NAME in the environment.")
        name = match[1] or match[2]
        secret = environ.get(name, "").strip()
        if not secret:
            raise BadValue(node, f"{name} is not set in the environment.")
        if not fits_header(secret):
            raise BadValue(
                node, f"{name} holds what no HTTP header can: a line break, or a letter that is not ASCII."
            )
        return secret

    return read
