"""SIGTERM: what runs may end, what is idle goes, and the process ends with 0 in any case."""

from __future__ import annotations

import signal
import subprocess
from contextlib import ExitStack

import pytest

from tests.server.conftest import STUB, count, until
from tests.server.raw import Connection
from tests.servers import RunningServer, running_server


def test_it_lets_running_streams_end(fresh_stub: RunningServer) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(fresh_stub)) for _ in range(20)]
        for connection in connections:
            connection.chat(do="stream", events=100, pause=0.01)
            connection.head()
        fresh_stub.process.send_signal(signal.SIGTERM)
        for connection in connections:
            chunks = []
            while chunk := connection.chunk():
                chunks.append(chunk)
            assert len(chunks) == 101
            assert chunks[-1] == b"data: [DONE]\n\n"
            assert chunk == b""  # the body ended as it should
            assert connection.closed
    assert fresh_stub.process.wait(60) == 0


def test_it_accepts_nothing_more_and_closes_what_is_idle(fresh_stub: RunningServer) -> None:
    with Connection(fresh_stub) as idle, Connection(fresh_stub) as running:
        idle.request("GET", "/livez")
        assert idle.read().status == 200
        running.chat(do="stream", events=50, pause=0.02)
        running.head()
        fresh_stub.process.send_signal(signal.SIGTERM)
        assert idle.closed
        with pytest.raises(ConnectionRefusedError):
            Connection(fresh_stub)
        while running.chunk():
            pass
    assert fresh_stub.process.wait(60) == 0


def test_it_is_not_ready_while_it_drains(fresh_stub: RunningServer) -> None:
    with Connection(fresh_stub) as connection, Connection(fresh_stub) as running:
        running.chat(do="stream", events=50, pause=0.02)
        running.head()
        connection.send(b"GET /readyz HTTP/1.1\r\n")  # a request that is still arriving
        count(fresh_stub, "started")  # ... and has been seen
        fresh_stub.process.send_signal(signal.SIGTERM)
        until(lambda: any(line["event"] == "draining" for line in fresh_stub.lines()))
        connection.send(b"Host: localhost\r\n\r\n")
        response = connection.read()
        assert response.status == 503
        assert response.json()["reasons"] == ["draining"]
        assert response.headers["connection"] == "close"
        assert connection.closed
    assert fresh_stub.process.wait(60) == 0


def test_a_second_signal_hurries_it(fresh_stub: RunningServer) -> None:
    with Connection(fresh_stub) as streaming, Connection(fresh_stub) as waiting:
        streaming.chat(do="silent", events=1)
        streaming.head()
        assert streaming.chunk() == b"data: 0\n\n"
        waiting.chat(do="wait")
        until(lambda: count(fresh_stub, "waiting") == 1)
        fresh_stub.process.send_signal(signal.SIGTERM)
        until(lambda: any(line["event"] == "draining" for line in fresh_stub.lines()))
        fresh_stub.process.send_signal(signal.SIGINT)
        # A request that could be answered says so, a stream breaks off: neither looks like success.
        response = waiting.read()
        assert response.status == 503
        assert response.headers["retry-after"] == "1"
        assert response.error["type"] == "server_error"
        last = streaming.chunk()
        assert last is not None
        assert last.startswith(b'data: {"error":{')
        assert streaming.chunk() is None
        assert fresh_stub.process.wait(60) == 0
    posts = [line for line in fresh_stub.request_lines() if line["method"] == "POST"]
    assert sorted((line["status"], line.get("broken", False)) for line in posts) == [(200, True), (503, False)]


def test_it_cancels_what_does_not_end_in_time() -> None:
    with running_server({**STUB, "DRAIN_SECONDS": "2"}) as server, Connection(server) as waiting:
        waiting.chat(do="wait")
        until(lambda: count(server, "waiting") == 1)
        assert server.stop() == 0
        assert waiting.read().status == 503


def test_it_dies_at_once_by_kill(fresh_stub: RunningServer) -> None:
    with Connection(fresh_stub) as waiting:
        waiting.chat(do="wait")
        until(lambda: count(fresh_stub, "waiting") == 1)
        fresh_stub.process.send_signal(signal.SIGTERM)
        try:
            fresh_stub.process.wait(0.3)
        except subprocess.TimeoutExpired:
            fresh_stub.process.kill()
        assert fresh_stub.process.wait(60) == -signal.SIGKILL
