"""How much a client has not taken. Real sockets: what the kernel says of them is the point."""

from __future__ import annotations

import socket
import time
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


def settle(waiting: SimpleNamespace) -> None:
    """Until the client's system has all that it takes for a client which does not read."""
    before = -1
    while before != (before := unsent.acknowledged(waiting) or 0):
        time.sleep(0.1)


@pytest.mark.parametrize(("ours", "answering"), [(1000, True), (1000, False), (0, True)])
def test_a_client_that_reads_takes_from_the_kernel_first(pair: Pair, ours: int, answering: bool) -> None:
    """Nothing of ours moves, for minutes if it reads slowly: it must not count as one that reads nothing."""
    server, client = pair
    fill(server)
    waiting, taking = transport(server, ours), unsent.Taking(0)
    settle(waiting)
    assert taking.stopped_for(waiting, 1, answering=answering) == 0
    assert taking.stopped_for(waiting, 121, answering=answering) == 120
    taken = 0
    while taken < 300_000:
        taken += len(client.recv(65_536))
    until(lambda: taking.stopped_for(waiting, 121, answering=answering) == 0)


def test_what_is_added_is_not_taken(pair: Pair) -> None:
    """A stream goes on into the kernel's buffer while its client has stopped reading, or has vanished."""
    server, client = pair
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    waiting, taking = transport(server, 0), unsent.Taking(0)
    server.send(b"x" * 200_000)
    settle(waiting)
    taking.stopped_for(waiting, 1, answering=True)
    server.send(b"x" * 1000)
    assert taking.stopped_for(waiting, 121, answering=True) == 120


def test_an_answer_that_is_given_is_the_kernels_affair(pair: Pair) -> None:
    fill(pair[0])
    taking = unsent.Taking(0)
    assert [taking.stopped_for(transport(pair[0], 0), now, answering=False) for now in (1, 500)] == [0, 0]


def test_a_socket_that_is_closed_has_nothing(pair: Pair) -> None:
    pair[0].close()
    closed = transport(pair[0], 7)
    assert (unsent.in_process(closed), unsent.in_kernel(closed), unsent.acknowledged(closed)) == (7, 0, None)
