"""A server process as in production, which also notes how long each admission takes: about 1 us of CPU each.

`python -m benchmarks.timed_server FILE [arguments of gateway.server]`: the file is written when it has stopped.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

KIND = "q"  # pairs of 64-bit integers: when it was asked for (us of the monotonic clock), and for how many us


def note_admissions() -> array[int]:
    """From now on. Returns where they are noted."""
    from gateway.ledger.desk import Desk

    notes, admit = array(KIND), Desk.admit

    async def timed(self: Desk, order: Any) -> tuple[str, Any]:
        asked = time.monotonic_ns() // 1000
        try:
            return await admit(self, order)
        finally:
            notes.append(asked)
            notes.append(time.monotonic_ns() // 1000 - asked)

    Desk.admit = timed  # type: ignore[method-assign]
    return notes


class Admissions:
    """What servers that have stopped noted."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._notes = array(KIND)
        for file in files:
            self._notes.frombytes(file.read_bytes())

    def between(self, begin: float, end: float) -> list[int]:
        """How long those took that were asked for between two readings (s) of the monotonic clock; us, ascending."""
        asked, took = self._notes[::2], self._notes[1::2]
        return sorted(us for at, us in zip(asked, took, strict=True) if begin <= at / 1e6 < end)


def main() -> None:
    import django

    from gateway.server import __main__ as server  # first of all: it installs the event loop

    django.setup()
    notes = note_admissions()
    status = server.main(sys.argv[2:])
    Path(sys.argv[1]).write_bytes(notes.tobytes())
    server.leave(status)


if __name__ == "__main__":
    main()
