"""The users' side of the embedded engines: start them or adopt live ones, and hold on to them.

`ensure` is cheap after its first call in a process. The hold is a shared file lock, so the kernel ends it
with the process, even after kill -9; when the last one is gone the keeper stops the engines.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from gateway.embedded import children, locks
from gateway.embedded.trouble import Trouble

WAIT_S = 120.0  # for engines that start (after a crash PostgreSQL recovers first) or stop
_held: dict[Path, int] = {}
_mutex = threading.Lock()


def ensure(home: Path, *, with_postgres: bool = True) -> None:
    """Return when the home's engines answer; from then on this process keeps them alive. Raises Trouble."""
    if home in _held:
        return
    with _mutex:
        if home in _held:
            return
        _check_owner(home)
        users = locks.open_file(home, "users")
        try:
            locks.wait(users, shared=True, seconds=WAIT_S, doing="The end of engines that were just stopping")
            _find_or_start(home, with_postgres)
        except BaseException:
            os.close(users)
            raise
        _held[home] = users


def revive(home: Path, *, with_postgres: bool = True) -> None:
    """For a user whose connection was refused: return when the engines answer again. Raises Trouble."""
    with _mutex:
        if home in _held:
            _find_or_start(home, with_postgres)


def release(home: Path) -> None:
    """Let go. The caller has closed its connections; the engines stop unless somebody else holds them."""
    with _mutex:
        users = _held.pop(home, None)
        if users is not None:
            os.close(users)


def wait_until_stopped(home: Path, seconds: float) -> bool:
    """After `release`: whether the engines are down. False as soon as it is clear that others use them."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if locks.is_free(home, "keeper"):
            return True
        if _used_by_others(home):
            return False
        time.sleep(0.05)
    return False


def _used_by_others(home: Path) -> bool:
    users = locks.open_file(home, "users")
    try:
        # Not to be had alone, yet shared: others share it. Not even shared: the keeper has it and is stopping.
        return not locks.acquire(users, shared=False) and locks.acquire(users, shared=True)
    finally:
        os.close(users)


def _find_or_start(home: Path, with_postgres: bool) -> None:
    start = locks.open_file(home, "start")
    try:
        locks.wait(start, shared=False, seconds=WAIT_S, doing="The start of the engines by another process")
        ready = locks.folder(home) / "ready"
        if locks.is_free(home, "keeper"):
            ready.unlink(missing_ok=True)
            _start_keeper(home, with_postgres)
        state = _wait_for(home, ready)
        if with_postgres and "postgres" not in state.split(maxsplit=2)[:2]:
            raise Trouble(
                f"{home} is in use by a process that has a DATABASE_URL, so PostgreSQL is not started there. "
                "Set DATABASE_URL here too, or another COUNTERFOIL_HOME."
            )
    finally:
        os.close(start)


def _start_keeper(home: Path, with_postgres: bool) -> None:
    source_root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [source_root, os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "gateway.embedded.keeper", str(home)]
    if not with_postgres:
        command.append("--without-postgres")
    # It leaves us by two forks, so this returns at once and nothing is left to reap.
    subprocess.run(command, env=children.environment(PYTHONPATH=path), stdin=subprocess.DEVNULL, check=True, cwd="/")


def _wait_for(home: Path, ready: Path) -> str:
    """The keeper's word in `ready`. Raises Trouble with its reason if it failed."""
    deadline = time.monotonic() + WAIT_S
    grace = time.monotonic() + 5  # until a keeper that was just started has its lock
    while time.monotonic() < deadline:
        if ready.exists():
            state = ready.read_text()
            if state.startswith("failed "):
                raise Trouble(state.removeprefix("failed "))
            return state
        if time.monotonic() > grace and locks.is_free(home, "keeper"):
            raise Trouble(f"The engines did not start. See {home / 'logs' / 'keeper.log'}.")
        time.sleep(0.02)
    raise Trouble(f"The engines did not answer within {WAIT_S:.0f} s. See {home / 'logs'}.")


def _check_owner(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    owner = home.stat().st_uid
    if owner != os.geteuid():
        raise Trouble(
            f"{home} belongs to user {owner}, and you are user {os.geteuid()}. "
            "Run as that user, or set COUNTERFOIL_HOME to a folder of yours."
        )
