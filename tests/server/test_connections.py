"""Keep-alive, pipelining, HTTP/1.0, HEAD: one connection, many requests, in order."""

from __future__ import annotations

import pytest

from tests.server.raw import CHAT, Connection, ask
from tests.servers import RunningServer


def test_it_keeps_connections_alive(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        for number in range(3):
            connection.chat(pad=number)
            assert connection.read().json()["pad"] == "x" * number


def test_it_answers_pipelined_requests_in_order(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        one = b'POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{"pad": %d}'
        connection.send(b"".join(one % (CHAT.encode(), number) for number in range(5)))
        connection.chat(do="stream")
        assert [len(connection.read().json()["pad"]) for _ in range(5)] == [0, 1, 2, 3, 4]
        assert connection.read().chunks == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n", b"data: [DONE]\n\n"]


def test_it_takes_a_request_byte_by_byte(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        for byte in b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}" % CHAT.encode():
            connection.send(bytes([byte]))
        assert connection.read().json()["length"] == 2


def test_it_reads_repeated_headers_again_and_again(stub: RunningServer) -> None:
    """Lines are remembered once parsed; what they say must not depend on their neighbours."""
    with Connection(stub) as connection:
        for lines in ("X-A: 1\r\nX-B: 2\r\nX-A: 3", "X-A: 3\r\nX-B: 2", "x-a: 3\r\nX-A:3 \r\nX-B: 2\r\n folded"):
            for _ in range(2):
                connection.send(f"GET /v1/headers HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n".encode())
                seen = connection.read().json()
                expected = {"1,3": "2", "3": "2", "3,3": "2 folded"}
                assert seen["X-B"] == expected[seen["X-A"]]
        assert seen["X-A"] == "3,3"


def test_it_closes_when_the_client_says_so(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.request("GET", "/livez", Connection="keep-alive, Close")
        response = connection.read()
        assert response.headers["connection"] == "close"
        assert connection.closed


def test_it_speaks_http_1_0(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.send(b"GET /livez HTTP/1.0\r\n\r\n")
        assert connection.read().status == 200
        assert connection.closed


def test_it_streams_to_http_1_0_without_chunks(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.send(b'POST %b HTTP/1.0\r\nContent-Length: 16\r\n\r\n{"do": "stream"}' % CHAT.encode())
        response = connection.read()
        assert "transfer-encoding" not in response.headers
        assert response.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("do", ["break", "fail"])
def test_a_stream_that_breaks_off_has_no_proper_end_on_http_1_0(stub: RunningServer, do: str) -> None:
    """Nothing but the connection's end tells that of the body."""
    with Connection(stub) as connection:
        body = b'{"do": "%b"}' % do.encode()
        connection.send(b"POST %b HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
        assert connection.head().status == 200
        with pytest.raises(ConnectionResetError):
            connection.rest()
        assert connection.buffer.startswith(b"data: ")


def test_it_sends_no_body_for_head(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.request("HEAD", "/health")
        response = connection.read("HEAD")
        assert int(response.headers["content-length"]) > 0
        connection.request("GET", "/livez")
        assert connection.read().status == 200


def test_it_says_the_date_and_not_its_own_name(stub: RunningServer) -> None:
    headers = ask(stub, "GET", "/livez").headers
    assert headers["date"].endswith("GMT")
    assert "server" not in headers


def test_it_sends_each_event_at_once(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.chat(do="silent", events=2)
        assert connection.head().headers["transfer-encoding"] == "chunked"
        assert connection.chunk() == b"data: 0\n\n"
        assert connection.chunk() == b"data: 1\n\n"  # the view sleeps for an hour now
