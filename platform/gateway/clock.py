"""What time it is, by the database's clock as this process last heard it (with each heartbeat of the desk).

A request belongs to the window that the database's clock is in, is found in the ledger by the time in its id, and
costs what holds at its start. So a process whose own clock is wrong must not go by it.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

SECOND_NS = 1_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_ahead_ns = 0  # the database's clock before ours


def now_ns() -> int:
    """Nanoseconds since 1970."""
    return _system_ns() + _ahead_ns


def now() -> datetime:
    return datetime.fromtimestamp(now_ns() // 1000 / 1_000_000, UTC)  # to the microsecond until the year 2242


def ask() -> int:
    """To be given to `hear` with the answer."""
    return _system_ns()


def hear(instant: datetime, asked_ns: int) -> None:
    """The database's time at some moment since we asked. A second's difference is not worth a correction."""
    global _ahead_ns
    heard_ns, told_ns = _system_ns(), (instant - EPOCH) // timedelta(microseconds=1) * 1000
    if not 0 <= heard_ns - asked_ns <= SECOND_NS:  # a slow answer is an old one
        return
    right = asked_ns - SECOND_NS <= told_ns <= heard_ns + SECOND_NS
    _ahead_ns = 0 if right else told_ns - heard_ns


def _system_ns() -> int:
    return time.time_ns()
