"""File locks that the kernel releases when their holder dies, however it dies.

Under `locks/` of the home:
    users     shared by every process that uses the engines; who gets it alone may stop them
    keeper    held by the keeper for its whole life
    start     held while a user looks for a keeper or starts one
    ready     not a lock: written by the keeper once the engines answer
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from gateway.embedded.trouble import Trouble

POLL_S = 0.02


def folder(home: Path) -> Path:
    path = home / "locks"
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def open_file(home: Path, name: str) -> int:
    return os.open(folder(home) / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def acquire(descriptor: int, *, shared: bool) -> bool:
    """Take the lock now or not at all."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait(descriptor: int, *, shared: bool, seconds: float, doing: str) -> None:
    """Take the lock within this time. Raises Trouble, which names what was waited for."""
    deadline = time.monotonic() + seconds
    while not acquire(descriptor, shared=shared):
        if time.monotonic() > deadline:
            raise Trouble(f"{doing} took longer than {seconds:.0f} s. See logs/keeper.log in COUNTERFOIL_HOME.")
        time.sleep(POLL_S)


def is_free(home: Path, name: str) -> bool:
    """Whether nobody holds it exclusively at this moment."""
    descriptor = open_file(home, name)
    try:
        return acquire(descriptor, shared=True)
    finally:
        os.close(descriptor)
