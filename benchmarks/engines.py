"""Embedded engines of the benchmark's own: a fresh, migrated database, its CPU, and commits as on a slow disk."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg

from benchmarks.programs import Failed

TICKS = os.sysconf("SC_CLK_TCK")


def default_home() -> Path:
    root = Path(__file__).resolve().parents[1]
    return Path(os.environ.get("COUNTERFOIL_HOME") or root / "var").resolve() / "bench"


@contextmanager
def running(home: Path) -> Iterator[None]:
    """From nothing to a migrated database, and nothing of it left at the end. Nobody else may use the home."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / f"{home.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failed(f"Another benchmark uses {home}. Set COUNTERFOIL_HOME to another folder.") from None
        shutil.rmtree(home, ignore_errors=True)
        _prepare_environment(home)
        with _migrated(home):
            yield
        shutil.rmtree(home, ignore_errors=True)


def _prepare_environment(home: Path) -> None:
    """Before Django is imported, here and in the servers: a home of our own, whatever DATABASE_URL says."""
    for name in ("DATABASE_URL", "MIGRATION_DATABASE_URL", "VALKEY_URL", "API_KEYS", "API_PREFIX", "DEBUG"):
        os.environ[name] = ""
    os.environ |= {"COUNTERFOIL_HOME": str(home), "DJANGO_SETTINGS_MODULE": "gateway.settings"}


@contextmanager
def _migrated(home: Path) -> Iterator[None]:
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connections

    from gateway.embedded import engines

    try:
        call_command("migrate", verbosity=0, interactive=False)
        yield
    finally:
        connections.close_all()
        engines.release(home)
        engines.wait_until_stopped(home, 30)


def postmaster(home: Path) -> int:
    """The pid under which all of PostgreSQL's processes are."""
    return int((home / "postgres" / "postmaster.pid").read_text().split()[0])


def tree_cpu(root: int) -> float:
    """Seconds of CPU that a process, its descendants and its children that have ended have used so far."""
    used: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        used[int(entry.name)] = sum(map(int, fields[11:15])) / TICKS
        children.setdefault(int(fields[1]), []).append(int(entry.name))
    family = [root]
    for pid in family:
        family += children.get(pid, [])
    return sum(used.get(pid, 0.0) for pid in family)


@contextmanager
def slow_commits(home: Path) -> Iterator[None]:
    """commit_siblings = 0: else nothing waits when the desk's is the only open transaction."""
    settings = ("commit_delay = 5000", "commit_siblings = 0")
    try:
        as_superuser(home, [f"ALTER SYSTEM SET {setting}" for setting in settings])
        yield
    finally:
        as_superuser(home, ["ALTER SYSTEM RESET commit_delay", "ALTER SYSTEM RESET commit_siblings"])


def as_superuser(home: Path, statements: Sequence[str]) -> None:
    from gateway.embedded import layout

    place = str(layout.sockets(home))
    with psycopg.connect(host=place, user=layout.SUPERUSER, dbname=layout.DATABASE, autocommit=True) as connection:
        for statement in [*statements, "SELECT pg_reload_conf()"]:
            connection.execute(statement.encode())
