"""Clients that send one byte at a time, or nothing: none of them holds a connection for long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.server.conftest import STUB
from tests.server.raw import CHAT, Connection
from tests.servers import RunningServer, running_server

HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
PATIENCE_SECONDS = 120  # the body's grace is 30


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server({**STUB, "HEAD_SECONDS": "2", "IDLE_SECONDS": "2"}) as server:
        yield server


def dribble(connection: Connection, piece: bytes) -> None:
    """Until the server answers."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    connection.socket.settimeout(1)
    while time.monotonic() < deadline:
        with suppress(ConnectionError):  # it has just been cut: what it was told can still be read
            connection.send(piece)
        try:
            connection.buffer += connection.socket.recv(65_536)
        except TimeoutError:
            continue
        break
    connection.socket.settimeout(20)


def test_a_connection_that_sends_nothing_is_closed(server: RunningServer) -> None:
    with Connection(server) as connection:
        assert connection.closed


def test_a_connection_between_two_requests_is_closed(server: RunningServer) -> None:
    with Connection(server) as connection:
        connection.request("GET", "/livez")
        assert connection.read().status == 200
        assert connection.closed


def test_a_head_byte_by_byte_gets_408(server: RunningServer) -> None:
    with Connection(server) as connection:
        connection.send(HEAD)
        dribble(connection, b"X")
        response = connection.read()
        assert (response.status, response.error["type"]) == (408, "invalid_request_error")
        assert connection.closed


@pytest.mark.parametrize(
    ("framing", "piece"), [(b"Content-Length: 99999", b"x"), (b"Transfer-Encoding: chunked", b"1\r\nx\r\n")]
)
def test_a_body_byte_by_byte_gets_408(server: RunningServer, framing: bytes, piece: bytes) -> None:
    with Connection(server) as connection:
        connection.send(HEAD + framing + b"\r\n\r\n")
        dribble(connection, piece)
        response = connection.read()
        assert (response.status, response.error["type"]) == (408, "invalid_request_error")
        assert response.headers["connection"] == "close"
        assert connection.closed
