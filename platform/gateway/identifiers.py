"""Time-ordered ids: the ledger's request ids sort by the time they were made."""

from __future__ import annotations

import os
import re
from uuid import UUID

from gateway import clock


def uuid7() -> UUID:
    """RFC 9562 version 7: 48 bits of unix milliseconds, then 74 random bits."""
    value = (clock.now_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return UUID(int=value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)


def wire_id(request_id: UUID | str) -> str:
    """The x-request-id: as clients, log lines and spans have it."""
    return "req_" + str(request_id).replace("-", "")


def parse_request_id(text: str) -> UUID | None:
    """From any form that people paste: x-request-id (req_ and 32 hex digits), chatcmpl-… or the UUID. None: no id."""
    digits = re.sub(r"^(req_|chatcmpl-)|-", "", text.strip().lower())
    return UUID(digits) if re.fullmatch(r"[0-9a-f]{32}", digits) else None
