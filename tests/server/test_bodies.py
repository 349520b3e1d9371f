"""The limit on bodies, by their announced and by their real length, and what becomes of the connection."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.server.exchange import Exchange
from tests.server.conftest import STUB, until
from tests.server.raw import CHAT, Connection, ask
from tests.servers import RunningServer, running_server

LIMIT = 100_000
CHUNKED = (
    b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def resident_mb(server: RunningServer) -> int:
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4 // 1024


def padded(size: int) -> bytes:
    body = b'{"do": "", "padding": "%s"}'
    return body % (b"x" * (size - len(body) + 2))


def test_it_takes_a_body_of_just_the_limit(stub: RunningServer) -> None:
    assert ask(stub, "POST", CHAT, padded(LIMIT)).json()["length"] == LIMIT


def test_it_refuses_an_announced_length_before_reading_the_body(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.send(b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n" % CHAT.encode())
        response = connection.read()
        assert response.status == 413
        assert response.error["message"] == (f"Maximum content size limit ({LIMIT}) exceeded (1000000000 bytes read)")
        assert response.headers["connection"] == "close"
        assert response.headers["x-request-id"].startswith("req_")
        assert connection.closed


def test_it_answers_clients_that_send_all_before_they_read(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.request("POST", CHAT, padded(20 * LIMIT))
        assert connection.read().status == 413


def test_it_refuses_a_chunked_body_as_soon_as_it_is_too_long(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.send(CHUNKED)
        piece = b"%x\r\n%b\r\n" % (10_000, b"x" * 10_000)
        for _ in range(11):
            connection.send(piece)
        response = connection.read()
        assert response.status == 413
        assert response.error["type"] == "server_error"
        connection.send(piece)  # still read, not reset
        assert connection.closed


def test_it_does_not_take_the_rest_of_a_refused_body_for_a_request(stub: RunningServer) -> None:
    smuggled = b"GET /v1/state?smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with Connection(stub) as connection:
        connection.send(b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n" % CHAT.encode())
        assert connection.read().status == 413
        connection.send(smuggled * 3)
        assert connection.rest() == b""


def test_it_puts_chunked_bodies_together(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.send(CHUNKED + b'5\r\n{"do"\r\n6;note=1\r\n: "x"}\r\n0\r\nTrailer: 1\r\n\r\n')
        assert connection.read().json()["length"] == 11
        connection.chat()
        assert connection.read().status == 200


def test_it_asks_for_a_body_that_waits_for_100_continue(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.send(b"POST %b HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n" % CHAT.encode())
        assert connection.head().status == 100
        connection.send(b"{}")
        assert connection.read().json()["length"] == 2


def test_it_does_not_ask_for_a_body_that_is_too_long(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.send(b"POST %b HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 200000\r\n\r\n" % CHAT.encode())
        assert connection.read().status == 413


@pytest.mark.parametrize("path", ["/v1/stock", "/stock/act"])
def test_it_limits_the_stock_handler_alike(stub: RunningServer, path: str) -> None:
    assert ask(stub, "POST", path, padded(LIMIT + 1)).status == 413


def test_it_leaves_forms_to_django(stub: RunningServer) -> None:
    """Twisted would parse them too, in the event loop; it is told not to."""
    response = ask(stub, "POST", "/stock/form", b"a=1&b=%C3%A9", Content_Type="application/x-www-form-urlencoded")
    assert response.status == 200
    mark = b"--cut\r\nContent-Disposition: form-data; name="
    body = mark + b'"a"\r\n\r\n1\r\n' + mark + b'"f"; filename="f.txt"\r\n\r\nhello\r\n--cut--\r\n'
    with Connection(stub) as connection:
        head = f"POST /stock/form HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        connection.send(head.encode() + b"Content-Type: multipart/form-data; boundary=cut\r\n\r\n" + body)
        assert connection.read().json() == {"fields": {"a": "1"}, "files": {"f": "hello"}}


def test_small_pieces_are_not_kept_one_by_one() -> None:
    """As objects of their own, 26 MB in chunks of one byte would take more than a gigabyte."""
    channel: Any = SimpleNamespace(transport=None, peer=None, local=None, factory=SimpleNamespace(server=None))
    exchange = Exchange(channel)
    pieces = [b"first", *(b"%d" % (number % 10) for number in range(10_000)), b"x" * 5000, b"last"]
    for piece in pieces:
        exchange.handleContentChunk(piece)
    assert len(exchange.body) < 5
    assert asyncio.run(exchange.receive())["body"] == b"".join(pieces)


def test_a_body_that_nobody_will_read_is_let_go_at_once() -> None:
    """Not when Python collects cycles, which a server with thousands of quiet objects seldom does."""
    with running_server({**STUB, "MAX_BODY_BYTES": "26214400"}) as server:
        before = resident_mb(server)
        for _ in range(10):
            with Connection(server) as connection:
                connection.send(CHUNKED + b"%x\r\n%b" % (25_000_000, b"x" * 20_000_000))
        until(lambda: resident_mb(server) < before + 60)
