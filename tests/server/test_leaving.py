"""Clients that leave, that read slowly, and streams that break off."""

from __future__ import annotations

import socket

import pytest

from tests.server.conftest import count, until
from tests.server.raw import Connection, ask
from tests.servers import RunningServer


def test_it_cancels_a_request_whose_client_has_left(stub: RunningServer) -> None:
    before, waiting, lines = count(stub, "cancelled"), count(stub, "waiting"), len(stub.request_lines())
    with Connection(stub) as connection:
        connection.chat(do="wait")
        until(lambda: count(stub, "waiting") == waiting + 1)
    until(lambda: count(stub, "cancelled") == before + 1)
    until(lambda: any(line["status"] == 499 for line in stub.request_lines()[lines:]))


def test_it_cancels_a_stream_that_is_silent(stub: RunningServer) -> None:
    before = count(stub, "cancelled")
    with Connection(stub) as connection:
        connection.chat(do="silent", events=1)
        connection.head()
        assert connection.chunk() == b"data: 0\n\n"
    until(lambda: count(stub, "cancelled") == before + 1)


def test_it_cancels_a_stream_whose_client_resets(stub: RunningServer) -> None:
    before = count(stub, "cancelled")
    with Connection(stub) as connection:
        connection.chat(do="stream", events=1_000_000, pause=0.001)
        connection.head()
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    until(lambda: count(stub, "cancelled") == before + 1)


def test_it_lets_django_clean_up_after_a_client_that_left(stub: RunningServer) -> None:
    before = count(stub, "cancelled")
    with Connection(stub) as connection:
        waiting = count(stub, "waiting")
        connection.request("POST", "/stock/act", {"do": "wait"})
        until(lambda: count(stub, "waiting") == waiting + 1)
    until(lambda: count(stub, "cancelled") == before + 1)


def test_it_waits_for_a_reader_that_does_not_read(stub: RunningServer) -> None:
    """100 MB that nobody takes: the view must not run ahead of the client."""
    megabytes, piece = 100, 64 * 1024
    memory, events = count(stub, "rss_kb"), count(stub, "events")
    with Connection(stub, receive_buffer=4096) as connection:
        connection.chat(do="flood", events=megabytes * 16, pad=piece)
        connection.head()
        until(lambda: count(stub, "events") > events)
        for _ in range(20):
            ask(stub, "GET", "/livez")
        assert count(stub, "events") - events < 200
        assert count(stub, "rss_kb") - memory < 20_000
        # ... and all of it comes once somebody reads.
        total = 0
        while chunk := connection.chunk():
            total += len(chunk)
        assert total > megabytes * 16 * piece


def test_it_breaks_a_broken_stream_off(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.chat(do="break")
        response = connection.read()
        assert response.chunks[-1] == b'data: {"error":{}}\n\n'
        assert not response.ended


def test_it_breaks_a_failing_stream_off(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.chat(do="fail")
        response = connection.read()
        assert response.chunks[0] == b"data: 0\n\n"
        assert not response.ended


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/stock"])
def test_it_answers_a_defect_in_the_envelope_and_says_nothing_of_it(stub: RunningServer, path: str) -> None:
    with Connection(stub) as connection:
        connection.request("POST", path, {"do": "raise"})
        response = connection.read()
        assert response.status == 500
        assert response.error["type"] == "server_error"
        assert b"hunter2" not in response.body
        connection.chat()  # and the connection lives
        assert connection.read().status == 200
    assert any("ValueError" in line.get("traceback", "") for line in stub.lines())
