"""What a client hears while a view is silent: comments in streams, blanks before whole answers."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.server.exchange import Exchange
from gateway.server.inbound import Headers
from gateway.server.keepalive import KeepAlive, wanted
from tests.server.conftest import count, until
from tests.server.raw import CHAT, Connection
from tests.server.test_lean import ORIGIN, assert_stamped
from tests.servers import RunningServer

COMMENT = b": keep-alive\n\n"
OFF = pytest.mark.parametrize("value", ["off", "OFF", "0", "false"])


def test_it_begins_a_stream_that_is_late(stub: RunningServer) -> None:
    asked = time.monotonic()
    with Connection(stub) as connection:
        connection.request("POST", CHAT, {"do": "stream", "keep": "stream", "before": 0.7}, Origin=ORIGIN)
        response = connection.read()
    comments = response.chunks.count(COMMENT)
    assert 1 <= comments <= (time.monotonic() - asked) / 0.15
    assert response.chunks == [COMMENT] * comments + [
        b"data: 0\n\n",
        b"data: 1\n\n",
        b"data: 2\n\n",
        b"data: [DONE]\n\n",
    ]
    assert (response.status, response.ended) == (200, True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["x-ratelimit-limit-requests"] == "7"
    assert_stamped(response)


def test_it_speaks_between_events(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.chat(do="stream", keep="stream", pause=0.4)
        chunks = connection.read().chunks
    assert chunks[0] == b"data: 0\n\n"
    for number in (0, 1, 2):
        assert chunks[chunks.index(b"data: %d\n\n" % number) + 1] == COMMENT
    assert chunks[-1] == b"data: [DONE]\n\n"


def test_it_says_nothing_while_there_is_something_to_say(stub: RunningServer) -> None:
    """Unless the server is kept from its work meanwhile, which it will not be each time."""
    for _ in range(10):
        with Connection(stub) as connection:
            connection.chat(do="stream", keep="stream", events=30, pause=0.02)
            if COMMENT not in connection.read().chunks:
                return
    raise AssertionError("it spoke each time")


def test_it_keeps_a_whole_answer_alive(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.chat(do="answer", keep="whole", before=1.0)
        response = connection.read()
        assert response.body.startswith(b" ") and response.body.lstrip().startswith(b"{")
        assert "length" in response.json()
        assert (response.headers["content-type"], response.ended) == ("application/json", True)
        assert response.headers["transfer-encoding"] == "chunked"
        assert response.headers["x-ratelimit-limit-requests"] == "7"
        assert_stamped(response)
        connection.chat()  # the connection can be used again
        assert connection.read().headers["content-length"]


def test_an_answer_in_time_is_as_ever(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.chat(do="answer", keep="whole")
        response = connection.read()
        assert response.body.startswith(b"{") and "transfer-encoding" not in response.headers
        connection.chat(do="refuse", keep="stream")
        assert connection.read().status == 429


@OFF
def test_a_client_turns_it_off(stub: RunningServer, value: str) -> None:
    with Connection(stub) as connection:
        for kind in ("stream", "whole"):
            wanted = {"do": kind, "keep": kind, "before": 0.6}
            connection.request("POST", CHAT, wanted, X_Counterfoil_Keep_Alive=value)
            response = connection.read()
            assert COMMENT not in response.body and not response.body.startswith(b" ")
            if kind == "whole":
                assert response.headers["content-length"]


@pytest.mark.parametrize("before", [0.7, 0])
def test_an_error_after_the_status_is_an_event_and_a_broken_end(stub: RunningServer, before: float) -> None:
    with Connection(stub) as connection:
        connection.chat(do="refuse", keep="stream", before=before)
        response = connection.read()
        if not before:
            assert (response.status, response.headers["retry-after"]) == (429, "7")
            return
        assert (response.status, response.chunks[0], response.ended) == (200, COMMENT, False)
        assert response.chunks[-1].startswith(b'data: {"error":{"message":"Slow down.","type":"requests"')
        assert response.chunks[-1].endswith(b"}}\n\n")
        assert connection.closed
    until(lambda: stub.request_lines()[-1].get("broken") is True)


@pytest.mark.parametrize("do", ["refuse", "raise"])
def test_an_error_after_blanks_is_json_and_a_broken_end(stub: RunningServer, do: str) -> None:
    with Connection(stub) as connection:
        connection.chat(do=do, keep="whole", before=0.7)
        response = connection.read()
        assert (response.status, response.ended) == (200, False)
        assert response.body.startswith(b" ")
        assert response.error["message"]
        assert b"hunter2" not in response.body
        assert connection.closed
    until(lambda: stub.request_lines()[-1].get("broken") is True)
    assert stub.request_lines()[-1]["status"] == 200


def test_a_stream_that_breaks_after_comments_is_broken_off(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.chat(do="break", keep="stream", before=0.4)
        response = connection.read()
        assert response.chunks[0] == COMMENT
        assert (response.chunks[-1], response.ended) == (b'data: {"error":{}}\n\n', False)


@pytest.mark.parametrize("kind", ["stream", "whole"])
def test_a_client_that_leaves_in_the_silence_is_noticed(stub: RunningServer, kind: str) -> None:
    before, lines = count(stub, "cancelled"), len(stub.request_lines())
    with Connection(stub) as connection:
        connection.chat(do=kind, keep=kind, before=3600)
        connection.head()
        for _ in range(3):  # it says so again and again
            assert connection.chunk() == (COMMENT if kind == "stream" else b" ")
    until(lambda: count(stub, "cancelled") == before + 1)
    until(lambda: any(line["status"] == 499 and line["path"] == CHAT for line in stub.request_lines()[lines:]))


def test_it_says_nothing_to_a_client_that_does_not_read(stub: RunningServer) -> None:
    """What waits for the client is the stream's own: not one comment comes with it.

    One may, if the server is kept from its work while it is read: which it will not be each time.
    """
    comments = 0
    for _ in range(5):
        with Connection(stub, receive_buffer=4096) as connection:
            events = count(stub, "events")
            connection.chat(do="flood", keep="stream", events=300, pad=64 * 1024)
            connection.head()
            until(lambda events=events: count(stub, "events") > events)  # type: ignore[misc]
            time.sleep(1)  # some silences of ours
            comments = connection.stream().count(COMMENT)
        if not comments:
            break
    assert comments == 0


async def test_a_filler_is_left_out_while_the_client_is_behind() -> None:
    """Else a client that reads nothing would be sent a little now and then, and never found to be stalled."""
    written: list[bytes] = []
    channel = SimpleNamespace(behind=True)
    exchange: Any = SimpleNamespace(
        gone=False, finished=0, channel=channel, _write=lambda data, more: written.append(data)
    )
    filler = {"type": "http.response.filler", "body": COMMENT}
    await Exchange.send(exchange, filler)
    assert written == []
    channel.behind = False
    await Exchange.send(exchange, filler)
    assert written == [COMMENT]


async def test_it_waits_for_what_it_said_last(settings: Any) -> None:
    settings.SSE_KEEP_ALIVE_SECONDS = 0.01
    said, taken = list[bytes](), asyncio.Event()

    async def say(word: bytes) -> None:
        said.append(word)
        await taken.wait()

    keep_alive = KeepAlive(say)
    keep_alive.begin(stream=True, headers=dict)
    await spoken(said, 1)
    await asyncio.sleep(0.2)
    assert said == [COMMENT]
    taken.set()
    await spoken(said, 3)
    keep_alive.close()
    keep_alive.close()
    before = len(said)
    await asyncio.sleep(0.05)
    assert len(said) == before


async def spoken(said: list[bytes], times: int) -> None:
    async with asyncio.timeout(60):
        while len(said) < times:
            await asyncio.sleep(0.01)


async def test_it_can_be_turned_off(settings: Any) -> None:
    settings.SSE_KEEP_ALIVE_SECONDS = settings.WHOLE_KEEP_ALIVE_SECONDS = 0

    async def say(word: bytes) -> None:
        raise AssertionError(word)

    for stream in (True, False):
        keep_alive = KeepAlive(say)
        keep_alive.begin(stream=stream, headers=dict)
        await asyncio.sleep(0.05)
        keep_alive.close()


def test_http_1_0_hears_comments_and_no_blanks(stub: RunningServer) -> None:
    """It could not tell an error after blanks from an answer: the end of its body is the connection's."""
    for kind, start in (("stream", COMMENT), ("whole", b"{")):
        body = json.dumps({"do": kind, "keep": kind, "before": 0.6}).encode()
        with Connection(stub) as connection:
            connection.send(b"POST %b HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
            assert connection.read().body.startswith(start)


def test_djangos_own_handler_has_none(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.request("POST", "/v1/stock", {"do": "stream", "keep": "stream", "before": 0.5})
        assert COMMENT not in connection.read().body


def test_the_drain_ends_what_only_keep_alives_have_begun(fresh_stub: RunningServer) -> None:
    with Connection(fresh_stub) as stream, Connection(fresh_stub) as whole:
        stream.chat(do="wait", keep="stream")
        whole.chat(do="wait", keep="whole")
        for connection in (stream, whole):
            assert connection.head().status == 200
            assert connection.chunk()
        fresh_stub.process.send_signal(signal.SIGTERM)
        until(lambda: any(line["event"] == "draining" for line in fresh_stub.lines()))
        fresh_stub.process.send_signal(signal.SIGINT)
        for connection, start in ((stream, b'data: {"error":{'), (whole, b'{"error":{')):
            chunks = []
            while chunk := connection.chunk():
                chunks.append(chunk)
            assert chunk is None
            assert chunks[-1].startswith(start)
    assert fresh_stub.process.wait(60) == 0


def test_other_servers_get_none() -> None:
    ours = {"extensions": {"http.response.filler": {}}}
    assert wanted(ours, Headers([]))
    assert wanted(ours, Headers([(b"x-counterfoil-keep-alive", b"on")]))
    assert not wanted(ours, Headers([(b"x-counterfoil-keep-alive", b" Off ")]))
    assert not wanted({}, Headers([]))
    assert not wanted({"extensions": {}}, Headers([]))
