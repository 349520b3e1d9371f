"""When a connection is closed for doing nothing. The clock is given, not waited for."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from pytest_django.fixtures import Settings

from gateway.server import channel as channels
from gateway.server.channel import Channel
from gateway.server.factory import Factory


class Transport:
    """As much of Twisted's as a channel uses."""

    connected, disconnected, disconnecting = True, False, False
    dataBuffer, offset, _tempDataLen = b"", 0, 0
    socket = SimpleNamespace(fileno=lambda: -1)

    def __init__(self) -> None:
        self.written = b""
        self.ended = ""

    def getPeer(self) -> object:
        return SimpleNamespace()

    getHost = getPeer

    def registerProducer(self, producer: object, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...
    def pauseProducing(self) -> None: ...

    def write(self, data: bytes) -> None:
        self.written += data

    def loseConnection(self) -> None:
        self.ended = "closed"

    loseWriteConnection = loseConnection

    def abortConnection(self) -> None:
        self.ended = "aborted"


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Channel:
    clock = SimpleNamespace(monotonic=lambda: 1000.0)
    monkeypatch.setattr(channels, "time", clock)
    loop: Any = SimpleNamespace(call_later=lambda *_: None)
    server: Any = SimpleNamespace(channel_closed=lambda: None)
    made = Channel(Factory(server, loop))
    made.makeConnection(Transport())
    return made


def after(channel: Channel, seconds: float) -> Any:
    channel.check_time(1000.0 + seconds)
    return channel.transport


def test_an_idle_connection_is_closed(channel: Channel) -> None:
    assert after(channel, 74).ended == ""
    assert after(channel, 76).ended == "closed"
    assert channel.transport.written == b""


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX"])
def test_a_head_must_come_in_time_however_it_dribbles(channel: Channel, sent: bytes) -> None:
    channel.dataReceived(sent)
    assert after(channel, 29).ended == ""
    channel.active = 1030.5  # a byte has just come
    assert after(channel, 31).ended == "closed"
    assert channel.transport.written.startswith(b"HTTP/1.1 408 Request Timeout\r\n")


HEADS = {
    "with a length": b"POST / HTTP/1.1\r\nContent-Length: 90000\r\n\r\n",
    "in chunks": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n15f90\r\n",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_body_must_keep_coming(channel: Channel, head: bytes) -> None:
    channel.dataReceived(head + b"x" * 80_000)
    channel.active = 1030
    assert after(channel, 89).ended == ""
    assert after(channel, 91).ended == "closed"
    assert b" 408 " in channel.transport.written


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_body_must_not_dribble(channel: Channel, head: bytes) -> None:
    channel.dataReceived(head + b"x")
    channel.active = 1029.5  # a byte has just come, as one does every 59 s
    assert after(channel, 30).ended == ""
    assert after(channel, 31).ended == "closed"
    assert channel.transport.written.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    body = channel.transport.written.partition(b"\r\n\r\n")[2]
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_nor_may_its_end(channel: Channel, head: bytes) -> None:
    """Nearly all of it at once would buy more than a minute; as 25 MB it would buy seven hours."""
    channel.dataReceived(head + b"x" * 89_000)
    for seconds in range(0, 65, 5):
        channel.active = 999.5 + seconds
        assert after(channel, seconds).ended == ""
    channel.active = 1069.5
    assert after(channel, 70).ended == "closed"
    assert channel.transport.written.startswith(b"HTTP/1.1 408 Request Timeout\r\n")


def test_a_slow_body_that_keeps_its_pace_may_take_its_time(channel: Channel) -> None:
    channel.dataReceived(b"POST / HTTP/1.1\r\nContent-Length: 900000\r\n\r\n")
    for seconds in range(0, 800, 5):
        channel.active = 1000.0 + seconds
        channel.requests[-1].received = 1100 * seconds
        assert after(channel, seconds).ended == ""


def test_how_fast_a_body_must_come_is_a_setting(channel: Channel, settings: Settings) -> None:
    settings.BODY_BYTES_PER_SECOND = 0
    channel.dataReceived(HEADS["with a length"] + b"x")
    channel.active = 1100
    assert after(channel, 101).ended == ""


def test_a_reader_that_takes_nothing_is_dropped(channel: Channel) -> None:
    channel.transport._tempDataLen = 100_000
    channel.pauseProducing()
    assert after(channel, 1).ended == ""
    assert after(channel, 120).ended == ""
    assert after(channel, 122).ended == "aborted"


def test_so_is_one_whose_answer_is_complete(channel: Channel) -> None:
    """Little enough to be written at once, but the kernel takes no more of it."""
    channel.transport._tempDataLen = 1000
    for seconds in range(1, 121, 5):
        assert after(channel, seconds).ended in ("", "closed")
    assert after(channel, 122).ended == "aborted"


def test_a_slow_reader_is_not(channel: Channel) -> None:
    channel.pauseProducing()
    for seconds in range(0, 3000, 110):
        channel.transport._tempDataLen = 100_000 - seconds
        assert after(channel, seconds).ended == ""
