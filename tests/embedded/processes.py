"""The processes that belong to one home, by their command lines."""

from __future__ import annotations

import os
from pathlib import Path


def processes_of(home: Path) -> dict[int, str]:
    """Process id -> command line of every live process (zombies have none) that names this home."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(home) in command:
            found[int(entry.name)] = command
    return found
