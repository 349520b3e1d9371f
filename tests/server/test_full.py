"""As many connections as a process may have, and no descriptor left: nobody is refused, the loop goes on."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.server import descriptors
from gateway.server import port as ports
from gateway.server.port import Port
from tests.server.conftest import STUB, count, until
from tests.server.raw import Connection
from tests.servers import RunningServer, running_server

MOST = 20


@pytest.fixture(scope="module")
def small() -> Iterator[RunningServer]:
    with running_server({**STUB, "MAX_CONNECTIONS": str(MOST), "STALL_SECONDS": "2"}) as server:
        yield server


def opened(stack: ExitStack, server: RunningServer, count: int) -> list[Connection]:
    return [stack.enter_context(Connection(server)) for _ in range(count)]


def lived(connection: Connection) -> int:
    connection.request("GET", "/livez")
    return connection.read().status


def test_idle_connections_make_room(small: RunningServer) -> None:
    """Twice as many as there may be; those that wait in the kernel's queue are taken as others go."""
    with ExitStack() as stack:
        first = opened(stack, small, MOST)
        assert {lived(connection) for connection in first} == {200}
        second = opened(stack, small, MOST)
        assert {lived(connection) for connection in second} == {200}
        assert all(connection.closed for connection in first)


def test_connections_that_work_are_not_closed_for_others(small: RunningServer) -> None:
    with ExitStack() as stack:
        working = opened(stack, small, MOST)
        for connection in working:
            connection.chat(do="stream", events=30, pause=0.1)
            connection.head()
        waiting = stack.enter_context(Connection(small))  # the kernel has accepted it
        waiting.request("GET", "/livez")
        assert all(len(connection.stream()) == 31 for connection in working)
        assert waiting.read().status == 200
    until(lambda: any(line["event"] == "full" for line in small.lines()))


def test_a_client_that_never_reads_is_cut(small: RunningServer) -> None:
    before = count(small, "cancelled")
    with Connection(small, receive_buffer=4096) as connection:
        connection.chat(do="flood", events=1_000_000, pad=65_536)
        until(lambda: count(small, "cancelled") == before + 1)
        with pytest.raises(ConnectionError):  # reset: there is no end that it could take for one
            while connection.socket.recv(65_536):
                pass


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="only Linux tells")
def test_so_is_one_whose_whole_answer_fits_into_the_kernels_buffer(small: RunningServer) -> None:
    before = count(small, "cancelled")
    with Connection(small, receive_buffer=4096) as connection:
        connection.chat(do="stream", events=10_000, pad=500, pause=0.02)
        until(lambda: count(small, "cancelled") == before + 1)


@pytest.mark.parametrize(
    ("soft", "wanted", "most"),
    [(1024, 0, 448), (1024, 100, 100), (1024, 5000, 896), (200, 0, 36), (64, 0, 16), (1_048_576, 0, 65_536)],
)
def test_how_many_there_may_be(soft: int, wanted: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda which: (soft, soft))
    assert descriptors.most_connections(wanted) == most


class Listener:
    """A socket whose accept() fails as it is told to."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)

    def accept(self) -> Any:
        raise OSError(self.errors.pop(0), "")


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Any:
    later: list[Any] = []
    loop = SimpleNamespace(call_later=lambda seconds, what: later.append(what) or SimpleNamespace(cancel=later.clear))
    made: Any = Port.__new__(Port)
    made.factory = SimpleNamespace(has_room=lambda: True, make_room=lambda: None, count=7, loop=loop)
    made.reading, made.connected, made.later = True, True, later
    made.stopReading = lambda: setattr(made, "reading", False)
    made.startReading = lambda: setattr(made, "reading", True)
    return made


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_without_descriptors_it_waits_instead_of_spinning(port: Any, number: int) -> None:
    port.socket = Listener(number)
    port.doRead()
    assert (port.reading, len(port.later)) == (False, 1)
    port.later[0]()  # a moment later, or when somebody leaves
    assert port.reading


def test_a_client_that_left_before_it_was_accepted_is_nothing(port: Any) -> None:
    port.socket = Listener(errno.ECONNABORTED, errno.EPERM, errno.EAGAIN)
    port.doRead()
    assert port.reading
    assert port.socket.errors == []


def test_a_burst_is_for_the_other_processes_too(port: Any) -> None:
    """A few, then a rest, in which others may take what is left; without it the first to wake up took nearly all."""
    port.socket = SimpleNamespace(accept=lambda: (None, None))
    port._serve = lambda client, address: setattr(port, "sessionno", port.sessionno + 1)
    for turn in (1, 2):
        port.doRead()
        assert port.sessionno == turn * ports.AT_ONCE
        assert (port.reading, len(port.later)) == (False, 1)
        port.later[0]()
        assert (port.reading, port.later) == (True, [])


def test_who_finds_nothing_left_does_not_rest(port: Any) -> None:
    port.socket = Listener(errno.EAGAIN)
    port.doRead()
    assert (port.reading, port.later) == (True, [])
