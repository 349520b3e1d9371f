"""The three headers that every answer of the API carries."""

from __future__ import annotations

from gateway.logs import RequestLog

OPENAI_VERSION = "2020-10-01"


def of(log: RequestLog) -> list[tuple[bytes, bytes]]:
    """As ASGI sends them."""
    return [
        (b"x-request-id", log.wire_id.encode()),
        (b"openai-processing-ms", b"%d" % log.elapsed_ms()),
        (b"openai-version", OPENAI_VERSION.encode()),
    ]
