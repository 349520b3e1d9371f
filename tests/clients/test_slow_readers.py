"""Back-pressure, end to end: a client that does not read costs a little memory, and the provider has to wait."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.clients.conftest import Shop
from tests.server.conftest import until
from tests.server.raw import Connection
from tests.upstream import Served
from tests.upstream_scripts import UPSTREAM_HEAD, Exchange, usage_of

PIECE = ("The quick brown fox jumps over the lazy dog. " * 1500)[: 64 * 1024]
MEGABYTES = 200
READERS = 4
BYTES_A_TOKEN = 4  # as the books estimate what was delivered of an answer without usage
MOST_UNREAD_BYTES = 512 * 1024


def whatever_is_left(connection: Connection) -> bytes:
    """What a connection that was reset can still read."""
    left = b""
    with suppress(ConnectionResetError):
        while said := connection.socket.recv(65_536):
            left += said
    return left


@dataclass(frozen=True)
class Flood:
    """As many megabytes as fast as they go, in events of 64 KiB."""

    megabytes: int = MEGABYTES

    async def __call__(self, exchange: Exchange) -> None:
        head = {**UPSTREAM_HEAD, "object": "chat.completion.chunk"}
        chunk = {**head, "choices": [{"index": 0, "delta": {"content": PIECE}, "finish_reason": None}]}
        event = b"data: " + json.dumps(chunk).encode() + b"\n\n"
        await exchange.head(200, {"content-type": "text/event-stream"})
        for number in range(self.megabytes * 16):
            await exchange.write(event)
            exchange.events = number + 1
        last = {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        exchange.usage = usage_of(exchange.body, 7)
        for said in (last, {**head, "choices": [], "usage": exchange.usage}):
            await exchange.write(b"data: " + json.dumps(said).encode() + b"\n\n")
        await exchange.write(b"data: [DONE]\n\n")
        await exchange.end()


def memory(shop: Shop, line: str = "VmRSS") -> int:
    """Megabytes of the server process; VmHWM: at most, so far."""
    status = Path(f"/proc/{shop.server.process.pid}/status").read_text()
    return int(status.partition(f"{line}:")[2].split()[0]) // 1024


def begin(shop: Shop, connection: Connection, user: str) -> str:
    """Ask for a stream and read its head only; the x-request-id."""
    wanted = {"model": "acme-chat", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "user": user}
    connection.request("POST", "/v1/chat/completions", wanted, Authorization=f"Bearer {shop.secret}")
    return connection.head().headers["x-request-id"]


def standing(served: list[Served]) -> int:
    """How many events the providers have been able to send, once they cannot send any more."""
    before = -1
    while (now := sum(request.events for request in served)) != before or not now:
        before = now
        time.sleep(0.5)
    return now


def read_all(connection: Connection) -> tuple[int, bool]:
    """(letters of the answer, whether it ended properly): without keeping it."""
    letters, rest, ended = 0, b"", False
    while chunk := connection.chunk():
        *events, rest = (rest + chunk).split(b"\n\n")
        for event in events:
            if event == b"data: [DONE]":
                ended = True
            elif event.startswith(b"data: "):
                for choice in json.loads(event[6:])["choices"]:
                    letters += len(choice["delta"].get("content") or "")
    return letters, ended and chunk == b""


def forget_the_peak(shop: Shop) -> None:
    """VmHWM begins anew; other tests have used the server, too."""
    Path(f"/proc/{shop.server.process.pid}/clear_refs").write_text("5")


def test_a_slow_reader_costs_bounded_memory_and_loses_nothing(shop: Shop) -> None:
    shop.serve(Flood(4))
    with Connection(shop.server) as connection:  # what the first of its kind costs, any client's does
        begin(shop, connection, "warm")
        assert read_all(connection) == (4 * 2**20, True)
    forget_the_peak(shop)
    before, served = memory(shop), shop.serve(*[Flood()] * READERS)
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(shop.server, receive_buffer=4096)) for _ in range(READERS)]
        ids = [begin(shop, connection, f"slow {number}") for number, connection in enumerate(connections)]
        taken = standing(served())
        assert taken < READERS * MEGABYTES  # of sixteen times as many
        assert memory(shop) - before < 8 * READERS
        # Others do not notice.
        for _ in range(5):
            answer = requests.post(
                f"{shop.base_url}/chat/completions",
                headers={"Authorization": f"Bearer {shop.secret}"},
                json={"model": "acme-chat", "messages": [{"role": "user", "content": "Hi"}]},
                timeout=60,
            )
            assert answer.json()["choices"][0]["message"]["content"] == "Hello there."
        # And once one reads, all of it comes.
        assert read_all(connections[0]) == (MEGABYTES * 2**20, True)
        assert memory(shop, "VmHWM") - before < 8 * READERS + 8
        record = shop.record(ids[0])
        assert (record["status"], record["output_tokens"]) == ("completed", 7)
    gone = [request for request in served() if request.marker != "slow 0"]
    assert len([request for request in gone if request.ended.wait(60) and request.outcome == "gone"]) >= READERS - 1
    for number in ids[1:]:
        record = shop.record(number)
        assert (record["status"], record["error_code"]) == ("interrupted", "client_disconnected")


def test_a_client_that_never_reads_is_cut(quiet: Shop) -> None:
    served = quiet.serve(Flood())
    with Connection(quiet.server, receive_buffer=4096) as connection:
        number = begin(quiet, connection, "asleep")
        (request,) = served()
        assert request.ended.wait(60)
        assert request.outcome == "gone"
        record = quiet.record(number)
        # It pays for little more than it can still read: for what was on its way to it.
        unread = record["output_tokens"] * BYTES_A_TOKEN - len(whatever_is_left(connection))
        assert record["status"] == "interrupted" and 0 < unread < MOST_UNREAD_BYTES
        until(lambda: any(line["request_id"] == number for line in quiet.server.request_lines()))
