"""How many workers, how large, and how long they may drain or hang: by the command's options, else by the settings.

Settings may change between two reloads, so each worker that gets ready tells the master what it has read.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Sizes:
    workers: int = 1  # 0: as many as there are CPUs
    drain_seconds: float = 20
    max_memory_mb: int = 0  # 0: no limit
    hang_seconds: int = 60  # 0: no limit

    @classmethod
    def of_settings(cls) -> Self:
        from django.conf import settings

        return cls(settings.WORKERS, settings.DRAIN_SECONDS, settings.WORKER_MAX_MEMORY_MB, settings.HANG_SECONDS)

    @property
    def count(self) -> int:
        return self.workers or cpus()

    def under(self, options: dict[str, Any]) -> Self:
        """With what the command line says, which no reload changes."""
        return replace(self, **options)

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str | bytes) -> Self:
        """What is not known is left out: a worker of newer code may say more than its master understands."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in json.loads(text).items() if name in known})


def cpus() -> int:
    """That this process may use: by its affinity, and by the quota of its container (cgroup v2)."""
    found = float(len(os.sched_getaffinity(0)))
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            found = min(found, int(quota) / int(period))
    return max(1, math.ceil(found))
