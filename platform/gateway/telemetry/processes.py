"""What the machine says of the web processes: memory, descriptors, CPU. Linux's /proc; elsewhere nothing is said."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import gateway
from gateway.telemetry import families
from gateway.telemetry.slots import Key


@dataclass(frozen=True)
class Process:
    resident: int  # bytes
    open_fds: int
    max_fds: int
    cpu_s: float


def series(pids: Iterable[int]) -> dict[Key, list[float]]:
    found = [process for process in map(look_at, pids) if process is not None]
    said: dict[Key, list[float]] = {
        (families.BUILD_INFO.name, (gateway.__version__, platform.python_version())): [1.0],
        (families.PROCESSES.name, ()): [float(len(found))],
    }
    if found:
        said |= {
            (families.RESIDENT_BYTES.name, ()): [float(sum(process.resident for process in found))],
            (families.OPEN_FDS.name, ()): [float(sum(process.open_fds for process in found))],
            (families.MAX_FDS.name, ()): [float(sum(process.max_fds for process in found))],
            (families.FDS_RATIO.name, ()): [max(process.open_fds / process.max_fds for process in found)],
            (families.CPU_SECONDS.name, ()): [sum(process.cpu_s for process in found)],
        }
    return said


def look_at(pid: int) -> Process | None:
    """None if it has ended, or may not be looked at."""
    folder = Path("/proc") / str(pid)
    try:
        pages = int((folder / "statm").read_bytes().split()[1])
        # The name in brackets may have spaces; user and system time are the 12th and 13th after it.
        times = (folder / "stat").read_bytes().rpartition(b")")[2].split()[11:13]
        limit = re.search(rb"^Max open files\s+(\d+)", (folder / "limits").read_bytes(), re.MULTILINE)
        return Process(
            resident=pages * os.sysconf("SC_PAGE_SIZE"),
            open_fds=len(os.listdir(folder / "fd")),
            max_fds=int(limit[1]) if limit else 1 << 20,  # unlimited
            cpu_s=sum(map(int, times)) / os.sysconf("SC_CLK_TCK"),
        )
    except (OSError, ValueError, IndexError):
        return None
