"""Clients that leave at any byte, never read, read slowly or ask byte by byte: what they cost, and whom.

Times are between two events in this process: our close of a socket, the provider's notice of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import statistics
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults import limits
from tests.faults.audit import Audit
from tests.faults.clients import Clients, all_of
from tests.faults.conftest import Ground, settled
from tests.faults.fleet import Fleet, Service
from tests.faults.load import Sent
from tests.faults.tally import Tally
from tests.faults.test_deploys import until
from tests.faults.wire import Goodbye
from tests.upstream_scripts import Stream, words

LEAVING = 60
MODEL = "words-12"
AT_ONCE_SECONDS = 5.0  # half of them, on a machine that does other things too: a stream takes twelve
STALL_SECONDS = 8  # more than a reader of ours is kept from its work
HEAD_SECONDS = 3
PIECE, PIECES = 65_536, 400  # 26 MB
LORIS = 10
MORE_MEGABYTES = 100  # a worker may have, with three clients that leave 26 MB each unread


@pytest.fixture(scope="module")
def service(whole_ground: Ground) -> Iterator[Service]:
    fleet = Fleet(whole_ground.house.environment, whole_ground.logs)
    service = fleet.serve(STALL_SECONDS=str(STALL_SECONDS), HEAD_SECONDS=str(HEAD_SECONDS))
    yield service
    assert service.stop() == 0, service.log.read_text()[-4000:]
    fleet.close()


class Loris:
    """A request that comes byte by byte, until it is answered."""

    def __init__(self, service: Service, begins: bytes, pause: float) -> None:
        self.port, self.begins, self.pause = service.port, begins, pause
        self.answer = b""
        self.thread = threading.Thread(target=self._dribble, daemon=True)
        self.thread.start()

    def _dribble(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as plug:
            plug.sendall(self.begins)
            plug.settimeout(self.pause)
            while True:
                try:
                    data = plug.recv(4096)
                except TimeoutError:
                    with contextlib.suppress(OSError):  # it has just been cut: what it was told can still be read
                        plug.sendall(b"x")
                    continue
                except OSError:
                    return
                self.answer += data
                if not data:
                    return

    def wait(self) -> bytes:
        self.thread.join(180)
        assert not self.thread.is_alive(), "it was never cut"
        return self.answer


@pytest.fixture(scope="module", autouse=True)
def bodies(service: Service, whole_ground: Ground) -> list[Loris]:
    """They are cut after half a minute: begun first, looked at last."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {whole_ground.key}\r\n"
    begins = f'{head}Content-Type: application/json\r\nContent-Length: 90000\r\n\r\n{{"model": "'.encode()
    return [Loris(service, begins, 0.5) for _ in range(LORIS)]


async def test_clients_that_leave_stop_the_provider_at_once(ground: Ground, service: Service, tally: Tally) -> None:
    draw, since = random.Random(11), ground.now()
    ground.upstream.script(MODEL, Stream(words(400), interval=0.03))
    ground.upstream.script("slow-120", Stream(words(3), hang_after=0))
    clients = Clients(service.port, ground.key)

    async def leave(number: int) -> Sent:
        await asyncio.sleep(draw.uniform(0, 2))
        reset = number % 2 == 0
        if number % 5 == 0:  # before the first byte
            return await clients.ask("slow-120", goodbye=Goodbye(after_seconds=draw.uniform(0.2, 1), reset=reset))
        return await clients.ask(MODEL, goodbye=Goodbye(after_received=draw.randrange(1, 9000), reset=reset))

    async with clients.traffic(4, ("words-40-every-5", "merged-9-every-2")):
        left = await all_of([leave(number) for number in range(LEAVING)])
        await until(lambda: all(one.ended_at for one in ground.upstream.served), "the provider hears of it")
    await settled(ground)
    audit = Audit(ground.house, clients.sent, ground.upstream.served, since)
    drift = limits.drift(ground.house)
    cases = [audit.cases[one.marker] for one in left]
    asked = [(one, served) for one, case in zip(left, cases, strict=True) for served in case.served]
    late = sorted((served.ended_at or 0) - one.ended_at for one, served in asked)
    note = f"cancelled after {statistics.median(late):.3f} s, the last after {late[-1]:.3f} s"
    tally.add("clients that leave", audit, len(drift), note)
    assert drift + audit.faults() == []
    assert [case.describe() for case in cases if case.served and case.status != "interrupted"] == []
    # Those that had a byte of the answer; the others may have gone before we had their request.
    assert len(asked) >= LEAVING * 4 // 5
    assert {served.outcome for _, served in asked} == {"gone"}
    assert statistics.median(late) < AT_ONCE_SECONDS


def request(ground: Ground, model: str, user: str) -> bytes:
    body = (
        f'{{"model": "{model}", "stream": true, "user": "{user}", "messages": [{{"role": "user", "content": "Go"}}]}}'
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ground.key}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


async def test_clients_that_never_read_are_cut_and_cost_little(
    ground: Ground, service: Service, tally: Tally
) -> None:
    since = ground.now()
    ground.upstream.script("merged-9-every-2", Stream(["x" * PIECE] * PIECES))
    clients = Clients(service.port, ground.key)
    plugs = [socket.socket() for _ in range(3)]
    service.forget_memory()
    before = service.megabytes()
    async with clients.traffic(4, ("words-12", "words-40-every-5")):
        for number, plug in enumerate(plugs):
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            plug.connect(("127.0.0.1", service.port))
            plug.sendall(request(ground, "merged-9-every-2", f"deaf-{number}"))
        deaf = lambda: [one for one in ground.upstream.served if one.marker.startswith("deaf-")]  # noqa: E731
        await until(lambda: len(deaf()) == 3 and all(one.ended_at for one in deaf()), "they are cut")
    megabytes = service.megabytes() - before
    for plug in plugs:
        plug.close()
    await settled(ground)
    sent = [one.events * PIECE / 2**20 for one in deaf()]
    served = [one for one in ground.upstream.served if one not in deaf()]
    records = ground.house.query("SELECT * FROM ledger_usagerecord WHERE end_user LIKE 'deaf-%%'", [])
    drift = limits.drift(ground.house)
    others = [one for one in records if one["status"] != "interrupted"]
    ground.house.query("SELECT 1")
    audit = Audit(ground.house, clients.sent, served, since)
    audit.strangers.clear()  # ours, which are looked at here
    tally.add(
        "clients that never read", audit, len(drift), f"+{megabytes} MB, {max(sent):.0f} of 26 MB were asked for"
    )
    assert drift + audit.faults() == []
    assert {one.outcome for one in deaf()} == {"gone"}
    assert len(records) == 3
    assert others == []
    assert all(record["charge"] > 0 for record in records)
    assert max(sent) < 16
    assert megabytes < MORE_MEGABYTES


async def test_slow_readers_lose_nothing(ground: Ground, service: Service, tally: Tally) -> None:
    """Each takes a little, for longer than one that takes nothing may."""
    since = ground.now()
    pieces = [f"w{number} " * 2000 for number in range(200)]  # 2 MB
    ground.upstream.script(MODEL, Stream(pieces))

    async def read() -> bytes:
        plug = socket.socket()
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        plug.connect(("127.0.0.1", service.port))
        reader, writer = await asyncio.open_connection(sock=plug, limit=16_384)
        writer.write(request(ground, MODEL, f"slow-{since.timestamp()}"))
        taken, began = b"", time.monotonic()
        while not taken.endswith(b"0\r\n\r\n"):
            data = await reader.read(16_384)
            assert data, "it was cut"
            taken += data
            if time.monotonic() - began < 1.5 * STALL_SECONDS:
                await asyncio.sleep(0.1)
        writer.close()
        return taken

    answers = await asyncio.gather(*(read() for _ in range(4)))
    await settled(ground)
    audit = Audit(ground.house, [], [], since)
    audit.strangers.clear()
    drift = limits.drift(ground.house)
    tally.add("slow readers", audit, len(drift), f"{sum(map(len, answers)) / 2**20:.0f} MB read")
    assert drift == []
    for answer in answers:
        assert answer.count(b"data: [DONE]") == 1
        assert [answer.count(f"w{number} ".encode()) for number in (0, 99, 199)] == [2000] * 3
    records = ground.house.query("SELECT status FROM ledger_usagerecord WHERE started_at >= %s", [since])
    assert [record["status"] for record in records] == ["completed"] * 4


async def test_a_slow_loris_is_cut_while_others_are_served(
    ground: Ground, service: Service, bodies: list[Loris], tally: Tally
) -> None:
    since = ground.now()
    clients = Clients(service.port, ground.key)
    heads = [Loris(service, b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Long: ", 0.3) for _ in range(LORIS)]
    async with clients.traffic(4) as healthy:
        answers = [await asyncio.to_thread(one.wait) for one in (*heads, *bodies)]
    await settled(ground)
    audit = Audit(ground.house, clients.sent, ground.upstream.served, since)
    drift = limits.drift(ground.house)
    tally.add("slow loris", audit, len(drift), f"{len(answers)} cut")
    assert drift + audit.faults() == []
    assert [answer[:12] for answer in answers if not answer.startswith(b"HTTP/1.1 408 ")] == []
    assert [one.reply.describe() for one in healthy if not one.reply.whole] == []
