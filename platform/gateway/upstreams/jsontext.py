"""JSON as providers write it: orjson, and for what it refuses (half surrogates, NaN) the standard library."""

from __future__ import annotations

import json
from typing import Any

import orjson


def loads(data: bytes) -> Any:
    """Raises ValueError, and nothing else, on what is not JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # A JavaScript server may cut a stream between the halves of a surrogate pair: legal JSON text.
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise ValueError("not JSON") from exc


def dumps(value: Any) -> bytes:
    """Compact, on one line."""
    try:
        return orjson.dumps(value)
    except TypeError:  # half a surrogate, or an integer above 64 bits
        return json.dumps(value, separators=(",", ":")).encode()
