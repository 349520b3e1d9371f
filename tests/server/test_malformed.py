"""Requests that are not HTTP, or not HTTP that anybody should serve: OpenAI's envelope, then the end."""

from __future__ import annotations

import pytest

from tests.server.conftest import count, until
from tests.server.raw import CHAT, Connection
from tests.servers import RunningServer

POST = b"POST %b HTTP/1.1\r\nHost: localhost\r\n" % CHAT.encode()

MALFORMED = {
    "no HTTP at all": b"hello\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "HTTP/2": b"GET / HTTP/2.0\r\n\r\n",
    "a method that is none": b"G(T / HTTP/1.1\r\n\r\n",
    "a path with a space": b"GET /a b HTTP/1.1\r\n\r\n",
    "a path that is not ASCII": b"GET /caf\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target that is no path": b"GET v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "a header without a colon": POST + b"nonsense\r\n\r\n",
    "a header name with a space": POST + b"X Y: 1\r\n\r\n",
    "NUL in a header": POST + b"X: a\x00b\r\n\r\n",
    "a vertical tab in a header": POST + b"X: a\x0bb\r\n\r\n",
    "a length that is no number": POST + b"Content-Length: +5\r\n\r\n",
    "a length that Python cannot read": POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length and chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an unknown encoding": POST + b"Transfer-Encoding: gzip\r\n\r\n",
    "a chunk of no length": POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n",
    "a chunk that does not end": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}}}\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_it_refuses(stub: RunningServer, name: str) -> None:
    with Connection(stub) as connection:
        connection.send(MALFORMED[name])
        response = connection.read()
        assert response.status == 400
        assert response.error["type"] == "invalid_request_error"
        assert response.headers["connection"] == "close"
        connection.send(b"GET /livez HTTP/1.1\r\n\r\n")  # what follows is not served
        assert connection.rest() == b""


@pytest.mark.parametrize(
    "headers",
    [b"X: " + b"x" * 70_000 + b"\r\n", b"".join(b"X-%d: 1\r\n" % n for n in range(300))],
    ids=["one long", "too many"],
)
def test_it_limits_headers(stub: RunningServer, headers: bytes) -> None:
    with Connection(stub) as connection:
        connection.send(POST + headers + b"\r\n")
        assert connection.read().status == 431


def test_it_counts_headers_that_it_has_seen_before(stub: RunningServer) -> None:
    """Thousands of known lines would cost a good part of a second."""
    with Connection(stub) as connection:
        connection.send(POST + b"X: 1\r\nContent-Length: 2\r\n\r\n{}")
        assert connection.read().status == 200
        connection.send(POST + b"X: 1\r\n" * 300 + b"\r\n")
        assert connection.read().status == 431


def test_a_websocket_that_is_none_is_no_defect_of_ours(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.send(b"GET /ws/feed/ HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n")
        assert b" 400 " in connection.rest()
    with Connection(stub) as connection:
        connection.request("GET", "/livez")
        assert connection.read().status == 200
    assert "AttributeError" not in stub.log.read_text()


def test_it_refuses_the_middle_header_before_the_application_runs(stub: RunningServer) -> None:
    before = count(stub, "started")
    with Connection(stub) as connection:
        connection.send(POST + b"bad header\r\nContent-Length: 2\r\n\r\n{}")
        response = connection.read()
        assert response.status == 400
    said = response.headers["x-request-id"]
    until(lambda: [line["status"] for line in stub.request_lines() if line["request_id"] == said] == [400])
    assert count(stub, "started") == before


def test_it_takes_absolute_targets(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.send(b"GET http://localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.read().status == 200


def test_it_ignores_headers_with_underscores_and_daphnes_root_path(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.send(b"GET /livez HTTP/1.1\r\nHost: x\r\nContent_Length: 5\r\nDaphne-Root-Path: /livez\r\n\r\n")
        assert connection.read().status == 200
