"""Users and keeper of a home of the test's own: started once, adopted, stopped after the last, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from gateway.embedded import engines, layout, locks, valkey
from tests.embedded.processes import processes_of, until

USER = """
import sys, pathlib, time
from gateway.embedded import engines
engines.ensure(pathlib.Path(sys.argv[1]))
print("up", flush=True)
sys.stdin.read()
"""


def start_user(home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", USER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def finish(user: subprocess.Popen[bytes]) -> None:
    user.communicate()


def answer(home: Path) -> object:
    with psycopg.connect(host=str(layout.sockets(home)), user=layout.APPLICATION, dbname=layout.DATABASE) as db:
        row = db.execute("SELECT 42").fetchone()
        return row and row[0]


def pid_of(home: Path, word: str) -> int:
    return next(pid for pid, command in processes_of(home).items() if word in command)


def written_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "home"
    yield path
    engines.release(path)
    until(lambda: not processes_of(path))


def test_the_engines_stop_after_their_last_user(home: Path) -> None:
    first, second = start_user(home), start_user(home)
    assert first.stdout and second.stdout
    assert first.stdout.readline() == second.stdout.readline() == b"up\n"
    keepers = [command for command in processes_of(home).values() if "keeper" in command]
    assert len(keepers) == 1
    finish(first)
    assert answer(home) == 42
    finish(second)
    until(lambda: not processes_of(home))
    assert not any(layout.sockets(home).iterdir())


def test_a_user_that_is_killed_counts_as_gone(home: Path) -> None:
    user = start_user(home)
    assert user.stdout
    user.stdout.readline()
    user.kill()
    finish(user)
    until(lambda: not processes_of(home))


def test_killing_the_keeper_leaves_no_process_and_the_next_start_works(home: Path) -> None:
    engines.ensure(home)
    os.kill(pid_of(home, "gateway.embedded.keeper"), signal.SIGKILL)
    until(lambda: not processes_of(home))
    engines.revive(home)
    assert answer(home) == 42


def test_the_keeper_restarts_an_engine_that_dies(home: Path) -> None:
    engines.ensure(home)
    before = written_at(locks.folder(home) / "ready")
    postmaster = int((home / "postgres" / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGKILL)
    os.kill(pid_of(home, "valkey-server"), signal.SIGKILL)
    until(lambda: written_at(locks.folder(home) / "ready") != before)  # gone, or there again: it is quick
    engines.revive(home)
    assert answer(home) == 42
    until(lambda: valkey.answers(layout.valkey_socket(home)))


def test_a_process_id_in_an_old_trace_that_is_somebody_else_does_not_stop_the_start(home: Path) -> None:
    engines.ensure(home)
    engines.release(home)
    until(lambda: not processes_of(home))
    (home / "postgres" / "postmaster.pid").write_text(f"{os.getpid()}\n{home / 'postgres'}\n")
    engines.ensure(home)
    assert answer(home) == 42


def test_users_that_arrive_while_it_stops_get_a_running_one(home: Path) -> None:
    for _ in range(4):
        engines.ensure(home)
        assert answer(home) == 42
        engines.release(home)
        time.sleep(0.15)


def test_a_home_with_a_long_name_gets_a_short_folder_for_sockets(tmp_path: Path) -> None:
    home = tmp_path / ("long-" * 20)
    user = start_user(home)
    assert user.stdout
    assert user.stdout.readline() == b"up\n"
    assert layout.sockets(home).parent == Path("/tmp")
    assert layout.sockets(home).stat().st_mode & 0o777 == 0o700
    assert answer(home) == 42
    finish(user)
    until(lambda: not processes_of(home))
    assert not layout.sockets(home).exists()


def test_a_start_that_fails_says_why(home: Path) -> None:
    (home / "postgres").mkdir(parents=True)
    (home / "postgres" / "PG_VERSION").write_text("9\n")
    with pytest.raises(engines.Trouble, match=r"version 9, which its data was made by.*DATABASE_URL"):
        engines.ensure(home)
