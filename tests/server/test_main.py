"""Starting: what is checked first, what is said when it cannot, and Daphne's own command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.server.conftest import STUB
from tests.server.raw import ask
from tests.servers import ROOT, running_server, server_environment


def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway.server", *arguments]
    environment = server_environment({**STUB, **extra})
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_it_refuses_to_start_when_a_check_fails() -> None:
    result = run("--port", "0", MAX_BODY_BYTES="much")
    assert result.returncode == 1
    assert "MAX_BODY_BYTES" in result.stderr
    assert "HINT" in result.stderr
    assert "Traceback" not in result.stderr


def test_it_says_that_the_address_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("--port", port)
    assert result.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr


def test_it_explains_itself() -> None:
    result = run("--help")
    assert result.returncode == 0
    assert "--fd" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_0_and_without_a_database(number: int) -> None:
    with running_server(STUB) as server:
        assert ask(server, "GET", "/health").status == 200
        assert server.stop(number) == 0
        assert [line["event"] for line in server.lines()][-1] == "stopped"


def test_it_runs_under_daphnes_own_command() -> None:
    command = ("-m", "daphne", "gateway.asgi:application")
    with running_server(STUB, command=command) as server:
        assert ask(server, "POST", "/v1/chat/completions", {"do": "stream"}).body.endswith(b"[DONE]\n\n")
        assert ask(server, "POST", "/v1/chat/completions", {"do": "raise"}).error["type"] == "server_error"
        broken = ask(server, "POST", "/v1/chat/completions", {"do": "break"})
        assert broken.chunks[-1].startswith(b'data: {"error":')
        os.kill(server.process.pid, signal.SIGTERM)
        server.process.wait(30)
