"""`manage.py serve`: several processes on one port, and what signals do to them. (Under load: tests/faults.)"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from gateway.embedded import engines, layout
from tests.house import House
from tests.server.conftest import STUB, until
from tests.server.raw import CHAT, Connection, ask
from tests.servers import ROOT, RunningServer, running_server, server_environment

SERVE = ("manage.py", "serve", "--workers", "2")


@pytest.fixture(scope="module")
def settings_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the workers read anew; the tests write it."""
    path = tmp_path_factory.mktemp("serve") / "env"
    path.write_text("MAX_TOKENS=1\n")
    return path


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A database: a worker that cannot reach one replaces none."""
    engines.ensure(settings.COUNTERFOIL_HOME)
    sockets = layout.sockets(settings.COUNTERFOIL_HOME)
    made = House(tmp_path_factory.mktemp("house"), sockets, f"serve_{os.getpid()}")
    made.create()
    yield made
    made.drop()


@pytest.fixture(scope="module")
def served(house: House, settings_file: Path) -> Iterator[RunningServer]:
    """One for all tests here; each leaves two workers that serve."""
    environment = {**STUB, **house.environment, "COUNTERFOIL_ENV_FILE": str(settings_file)}
    with running_server(environment, command=SERVE) as server:
        until(lambda: len(pids(server)) == 2)
        yield server


def pids(server: RunningServer) -> set[int]:
    """Of the workers that serve, by what the master says."""
    found: set[int] = set()
    for line in server.lines():
        if line["event"] == "worker ready":
            found.add(line["pid"])
        elif line["event"] in ("worker died", "worker left"):
            found.discard(line["pid"])
    return found


def who_answers(server: RunningServer) -> int:
    return int(ask(server, "GET", "/v1/state").json()["pid"])


def events(server: RunningServer) -> list[str]:
    return [str(line["event"]) for line in server.lines() if line.get("logger") == "gateway.server.master"]


def test_several_processes_answer_on_one_port(served: RunningServer) -> None:
    answered: set[int] = set()
    until(lambda: answered.add(who_answers(served)) or answered == pids(served))  # type: ignore[func-returns-value]
    assert len(answered) == 2
    assert served.process.pid not in answered


def test_the_master_stays_small(served: RunningServer) -> None:
    """It holds the socket for months: no Django, no thread, no connection."""
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    figures = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert int(figures["VmRSS"].split()[0]) < 40_000
    assert figures["Threads"] == "1"


@pytest.mark.parametrize("framing", ["Content-Length: 100001", "Transfer-Encoding: chunked"])
def test_a_body_that_is_too_long_is_refused(served: RunningServer, framing: str) -> None:
    with Connection(served) as connection:
        connection.send(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n".encode())
        if "chunked" in framing:
            connection.send(b"186a1\r\n" + b"x" * 100_001)
        response = connection.read()
        assert (response.status, response.error["type"]) == (413, "server_error")
        assert "Maximum content size limit (100000) exceeded" in response.error["message"]


def test_a_worker_that_is_killed_is_replaced_and_the_other_answers(served: RunningServer) -> None:
    before = pids(served)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    until(lambda: "worker died" in events(served))
    answered = who_answers(served)
    assert answered == max(before) or events(served).count("worker ready") > 2  # so slow that the next is there
    assert answered != victim
    until(lambda: len(pids(served)) == 2)
    (died,) = [line for line in served.lines() if line["event"] == "worker died"]
    assert (died["pid"], died["signal"]) == (victim, "SIGKILL")
    assert max(before) in pids(served)


def test_a_reload_brings_new_processes_with_new_settings_and_cuts_nothing(
    served: RunningServer, settings_file: Path
) -> None:
    before = pids(served)
    settings_file.write_text("MAX_TOKENS=2\n")
    with Connection(served) as streaming, Connection(served) as idle:
        streaming.chat(do="stream", events=80, pause=0.05)
        streaming.head()
        idle.request("GET", "/livez")
        idle.read()
        served.process.send_signal(signal.SIGHUP)
        assert len(streaming.stream()) == 81
    until(lambda: "reloaded" in events(served))
    until(lambda: not pids(served) & before)
    assert ask(served, "GET", "/v1/state").json()["max_tokens"] == 2


def test_a_reload_that_cannot_start_leaves_those_that_run_alone(served: RunningServer, settings_file: Path) -> None:
    before = pids(served)
    settings_file.write_text("MAX_BODY_BYTES=much\nMAX_TOKENS=a few\n")
    served.process.send_signal(signal.SIGHUP)
    until(lambda: "reload failed: those that ran go on" in events(served))
    assert "MAX_TOKENS: 'a few' is not a whole number" in served.log.read_text()
    assert pids(served) == before
    settings_file.write_text("MAX_TOKENS=3\n")


def test_nobody_is_replaced_by_a_worker_that_would_do_worse(served: RunningServer, house: House) -> None:
    """Its code is newer than the database: `migrate` was forgotten."""
    before, failures = pids(served), events(served).count("reload failed: those that ran go on")
    house.query(
        "UPDATE django_migrations SET name = 'later' WHERE app = 'tenants' AND name = '0002_versions' RETURNING 1"
    )
    served.process.send_signal(signal.SIGHUP)
    until(lambda: events(served).count("reload failed: those that ran go on") > failures)
    assert "Not fit to replace a worker that serves: migrations: not applied: tenants." in served.log.read_text()
    assert pids(served) == before
    assert ask(served, "GET", "/v1/state").status == 200


def test_it_drains_and_ends_with_0(served: RunningServer) -> None:
    """The last test here."""
    with Connection(served) as streaming, Connection(served) as arriving:
        streaming.chat(do="stream", events=30, pause=0.05)
        streaming.head()
        arriving.send(b"GET /readyz HTTP/1.1\r\n")
        ask(served, "GET", "/livez")
        served.process.send_signal(signal.SIGTERM)
        until(lambda: sum(line["event"] == "draining" for line in served.lines()) >= 4)  # two by the reload
        until(served.refuses)  # each says that it drains, and closes its socket then
        arriving.send(b"Host: localhost\r\n\r\n")
        assert arriving.read().json()["reasons"] == ["draining"]
        assert len(streaming.stream()) == 31
    assert served.process.wait(60) == 0
    assert served.lines()[-1]["event"] == "stopped"


def test_a_worker_that_hangs_says_where_and_is_replaced() -> None:
    command = (*SERVE[:-1], "1")
    with running_server({**STUB, "HANG_SECONDS": "5"}, command=command) as server, Connection(server) as hanging:
        until(lambda: len(pids(server)) == 1)  # it may answer before the master has said so
        (before,) = pids(server)
        hanging.chat(do="hang")
        assert hanging.rest() == b""
        assert who_answers(server) != before
        (died,) = [line for line in server.lines() if line["event"] == "worker died"]
        assert (died["pid"], died["signal"]) == (before, "SIGKILL")
        assert "stub_urls.py" in server.log.read_text()


def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "manage.py", "serve", *arguments]
    environment = server_environment({**STUB, **extra})
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)


def test_it_says_which_setting_is_wrong() -> None:
    result = run("--port", "0", WORKERS="many")
    assert result.returncode == 1
    assert "WORKERS: 'many' is not a whole number" in result.stderr
    assert "HINT" in result.stderr
    assert "Traceback" not in result.stderr


def test_it_says_that_the_address_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("--port", str(taken.getsockname()[1]))
    assert result.returncode == 1
    assert "Cannot listen on 127.0.0.1" in result.stderr
    assert "Traceback" not in result.stderr


def test_it_ends_with_1_when_no_worker_can_start() -> None:
    result = run("--port", "0", "--workers", "2", DJANGO_SETTINGS_MODULE="tests.server.failing_settings")
    assert result.returncode == 1
    assert "this worker cannot start" in result.stderr
    assert "no worker could start" in result.stderr


@pytest.fixture
def hangup() -> Iterator[None]:
    """The command ignores SIGHUP in its process, which here is ours."""
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--workers", "0"), "expected a number from 1 to 1024, or auto"),
        (("--workers", "two"), "'two' is not a whole number"),
        (("--max-memory", "-1"), "expected one argument|'-1' is not a whole number"),
        (("--drain-seconds", "soon"), "'soon' is not a number of seconds"),
        (("--port", "70000"), "expected a number from 0 to 65535"),
        (("--port", "http"), "'http' is not a whole number"),
        (("--fd", "987654"), "Cannot listen on descriptor 987654: Bad file descriptor"),
        (("--fd", "99999999999"), "Cannot listen on descriptor 99999999999"),
    ],
)
@pytest.mark.usefixtures("hangup")
def test_it_names_an_option_that_is_wrong(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        call_command("serve", *arguments, skip_checks=True)


@pytest.mark.usefixtures("hangup")
def test_it_wants_a_descriptor_that_listens() -> None:
    with socket.socket() as deaf, Path(__file__).open() as file:
        for descriptor, said in ((deaf.fileno(), "no listening socket"), (file.fileno(), "non-socket")):
            with pytest.raises(CommandError, match=f"Cannot listen on descriptor {descriptor}: .*{said}"):
                call_command("serve", "--fd", str(descriptor), skip_checks=True)


def test_signals_that_come_before_django_are_heard() -> None:
    """As PID 1 it would never hear of a SIGTERM; and a reload must not kill what is only starting."""
    program = (
        "import os, signal, sys, manage, django.core.management as management\n"
        "def start(arguments):\n    os.kill(os.getpid(), signal.SIGHUP)\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "management.execute_from_command_line = start\nsys.argv = ['manage.py', 'serve']\nmanage.main()\nsys.exit(7)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=180).returncode == 0


def test_a_signal_that_waits_for_the_master_stops_it() -> None:
    def tell() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        os.kill(os.getpid(), signal.SIGTERM)

    command = [sys.executable, "-m", "gateway.server.master", "--host", "127.0.0.1", "--port", "0"]
    command += ["--sizes", '{"workers": 1}', "--options", "{}"]
    ended = subprocess.run(
        command, cwd=ROOT, env=server_environment(STUB), preexec_fn=tell, capture_output=True, timeout=180
    )
    assert (ended.returncode, b'"stopping"' in ended.stderr) == (0, True)
