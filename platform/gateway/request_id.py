"""UUIDv7: the time-ordered id of a request, which is also the ledger's primary key. Pure."""

from __future__ import annotations

import os
import time
from uuid import UUID

_RANDOM_MASK = (1 << 74) - 1


def uuid7() -> UUID:
    """48 bits of milliseconds, 74 random bits (RFC 9562). Python has its own from 3.14 on."""
    random = int.from_bytes(os.urandom(10), "big") & _RANDOM_MASK
    milliseconds = time.time_ns() // 1_000_000 & (1 << 48) - 1
    high, low = random >> 62, random & (1 << 62) - 1
    return UUID(int=milliseconds << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low)
