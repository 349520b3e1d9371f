"""How much a client has not taken. Real sockets: what the kernel says of them is the point."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from gateway.server import unsent
from tests.server.conftest import until

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A connection over TCP: our end, and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        server.setblocking(False)
        yield server, client


def transport(server: socket.socket, ours: int) -> SimpleNamespace:
    """As much of Twisted's as is looked at, with so many bytes that wait in this process."""
    return SimpleNamespace(dataBuffer=b"x" * (ours + 3), offset=3, _tempDataLen=0, socket=server)


def fill(server: socket.socket) -> None:
    while True:
        try:
            server.send(b"x" * 65_536)
        except BlockingIOError:
            return


def test_a_client_that_reads_takes_from_the_kernel_first(pair: Pair) -> None:
    """Nothing of ours moves, for minutes if it reads slowly: it must not count as one that reads nothing."""
    server, client = pair
    fill(server)
    waiting = transport(server, 1000)
    before = unsent.size(waiting)
    assert before > 1000
    assert unsent.size(waiting) == before
    taken = 0
    while taken < 300_000:
        taken += len(client.recv(65_536))
    until(lambda: unsent.size(waiting) < before)
    assert unsent.size(waiting) > 1000


def test_nothing_waits_once_the_kernel_has_it_all(pair: Pair) -> None:
    fill(pair[0])
    assert unsent.size(transport(pair[0], 0)) == 0


def test_a_socket_that_is_closed_has_nothing(pair: Pair) -> None:
    pair[0].close()
    assert unsent.size(transport(pair[0], 7)) == 7
