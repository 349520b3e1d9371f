"""Starts child processes that never outlive their parent, in sessions of their own.

Their own session keeps Ctrl-C away from them, so that their parent can stop them in order; the kernel's
parent-death signal ends them when the parent is killed. PostgreSQL refuses to run as root, so root's engines
run as "nobody": in a user namespace that maps root to nobody (files stay root's), else as the real nobody.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from gateway.embedded.trouble import Trouble

NOBODY = 65534
PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(signal_number: int, parent: int) -> None:
    """Ask the kernel for this signal when the parent's thread ends; end at once if `parent` is gone already.

    The kernel forgets this when credentials change, so it comes after any such change.
    """
    if sys.platform != "linux":
        return
    _libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal_number)


def enter_namespace() -> None:
    """Become nobody inside a user namespace; outside of it files and signals are still root's."""
    if _libc.unshare(CLONE_NEWUSER):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{NOBODY} 0 1")
    Path("/proc/self/gid_map").write_text(f"{NOBODY} 0 1")


def can_enter_namespace() -> bool:
    """Try it in a child, since containers often forbid it (Docker's default profile does)."""
    try:
        return subprocess.run(["true"], preexec_fn=enter_namespace, stderr=subprocess.DEVNULL).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def start(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    output: IO[bytes] | int | None = None,
    death_signal: int = signal.SIGKILL,
    before: Callable[[], None] | None = None,
    user: int | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own. Call it from a thread that stays: its end is what the child notices."""
    parent = os.getpid()

    def prepare() -> None:
        if before:
            before()
        die_with_parent(death_signal, parent)

    return subprocess.Popen(
        [str(part) for part in command],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        start_new_session=True,
        preexec_fn=prepare,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        cwd=cwd or "/",
        pass_fds=pass_fds,
    )


class Identity:
    """As whom PostgreSQL runs on this data: "self" for a normal user, "namespace" or "nobody" for root."""

    def __init__(self, data: Path | None = None) -> None:
        if os.geteuid():
            self.kind = "self"
        elif (data and data.exists() and data.stat().st_uid == NOBODY) or not can_enter_namespace():
            self.kind = "nobody"
        else:
            self.kind = "namespace"

    def popen(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        output: IO[bytes] | int | None = None,
        death_signal: int = signal.SIGKILL,
    ) -> subprocess.Popen[bytes]:
        return start(
            command,
            env=env,
            output=output,
            death_signal=death_signal,
            before=enter_namespace if self.kind == "namespace" else None,
            user=NOBODY if self.kind == "nobody" else None,
        )

    def run(self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Run to the end; exit code and output."""
        try:
            process = self.popen(command, env=env, output=subprocess.PIPE)
        except (OSError, subprocess.SubprocessError) as error:
            return 127, str(error)
        output, _ = process.communicate()
        return process.returncode, output.decode(errors="replace")

    def own(self, folder: Path) -> None:
        """Make a folder that only this identity can enter. Raises Trouble if it is somebody else's."""
        user = NOBODY if self.kind == "nobody" else os.geteuid()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner = folder.lstat().st_uid
        if folder.is_symlink() or owner not in (user, os.geteuid()):
            raise Trouble(f"{folder} belongs to user {owner}. Set COUNTERFOIL_HOME to another, shorter path.")
        folder.chmod(0o700)
        if user != owner:
            os.chown(folder, user, user)


def stop(process: subprocess.Popen[bytes], *, by: Sequence[tuple[int, float]]) -> None:
    """End a child by these signals in turn, each with its seconds to wait; then kill it."""
    for number, seconds in by:
        if process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    process.wait()


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Kill what a child that has ended left in its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def environment(**extra: str) -> dict[str, str]:
    """This process's environment for an engine: no PG* variable, which would redirect it; a known locale."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C", "TZ": "UTC"} | extra
