"""SIGHUP and SIGTERM with 64 streams in flight and requests that keep coming: 0 broken, 0 refused, 0 unrecorded."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

import pytest

from tests.faults import limits
from tests.faults.audit import Audit
from tests.faults.clients import Clients, all_of
from tests.faults.conftest import Ground, settled
from tests.faults.fleet import Fleet
from tests.faults.gates import Gate
from tests.faults.load import Sent
from tests.faults.tally import Tally
from tests.upstream_scripts import Stream, words

STREAMS = 64
KEPT = 3  # connections of those who ask for something short
LONG = "words-30-every-100"  # three seconds
PATIENCE_SECONDS = 180


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


def running(ground: Ground) -> int:
    return sum(request.outcome == "running" and request.model == LONG for request in ground.upstream.served)


@pytest.fixture
def long_model(ground: Ground) -> None:
    ground.house.apply(
        f"models:\n  - {{id: {LONG}, deployments: [{{provider: scripted, upstream_model: {LONG}}}], prices: "
        '[{effective_from: 2026-01-01, currency: USD, input: "1", output: "2"}]}\n'
    )


async def stream_on(clients: Clients, stopping: asyncio.Event) -> None:
    while not stopping.is_set():
        await clients.ask(LONG)


def lost(sent: list[Sent]) -> list[str]:
    """Begun, and not answered in full."""
    return [one.reply.describe() for one in sent if not one.reply.whole and one.reply.status]


async def test_reloads_under_load_cut_refuse_and_lose_nothing(
    ground: Ground, fleet: Fleet, long_model: None, tally: Tally
) -> None:
    since, service = ground.now(), fleet.serve()
    clients, stopping, first = Clients(service.port, ground.key), asyncio.Event(), set(service.workers)
    tasks = [asyncio.create_task(stream_on(clients, stopping)) for _ in range(STREAMS)]
    in_flight = []
    async with clients.traffic(6) as short:
        for pause in (0.5, 0.5, 6.0, 0.0):  # two that meet a reload, and one after it
            await until(lambda: running(ground) >= STREAMS // 2, "the streams run")
            in_flight.append(running(ground))
            service.popen.send_signal(signal.SIGHUP)
            await asyncio.sleep(pause)
        await asyncio.to_thread(service.until_said, "reloaded", 2)
        await until(lambda: not service.said("reloading") or service.idle, "the reloads end")
        stopping.set()
        await asyncio.gather(*tasks)
    second = set(service.workers)
    assert await asyncio.to_thread(service.stop) == 0
    await settled(ground)
    audit = Audit(ground.house, clients.sent, ground.upstream.served, since)
    drift = limits.drift(ground.house)
    reloads = len(service.said("reloaded"))
    tally.add("SIGHUP, again and again", audit, len(drift), f"{reloads} reloads, {in_flight} in flight")
    assert drift + audit.faults() == []
    assert lost(clients.sent) == []
    # An idle connection that is closed may cross a request on its way: nobody has begun that one.
    refused = [one for one in clients.sent if not one.reply.status]
    assert not [one for one in refused if one.reply.end == "refused" or one not in short]
    assert len(refused) <= KEPT * len(service.said("worker left"))
    assert reloads >= 2
    assert not first & second


async def test_sigterm_lets_64_streams_end(ground: Ground, fleet: Fleet, long_model: None, tally: Tally) -> None:
    since, service = ground.now(), fleet.serve()
    fleet.listener.close()  # the service has the only one
    clients, gate = Clients(service.port, ground.key), Gate(30)
    ground.upstream.script(LONG, gate)
    async with clients.traffic(6):
        streams = all_of([clients.ask(LONG) for _ in range(STREAMS)])
        await until(lambda: running(ground) == STREAMS, "the streams run")
        status = asyncio.create_task(asyncio.to_thread(service.stop))
        await until(lambda: any(one.reply.end == "refused" for one in clients.sent), "new connections are refused")
        gate.open()
        answered = await streams
        assert await status == 0
    await settled(ground)
    audit = Audit(ground.house, clients.sent, ground.upstream.served, since)
    drift = limits.drift(ground.house)
    tally.add("SIGTERM", audit, len(drift), f"{STREAMS} in flight")
    assert drift + audit.faults() == []
    assert [one.reply.describe() for one in answered if not one.reply.whole] == []
    assert [one for one in lost(clients.sent) if not one.startswith("status 503")] == []
    never_begun = [audit.cases[one.marker] for one in clients.sent if not one.reply.status]
    assert never_begun, "new connections were refused"
    assert not [case.describe() for case in never_begun if case.served or case.records]


async def test_what_does_not_end_in_time_is_broken_off_and_booked(ground: Ground, fleet: Fleet, tally: Tally) -> None:
    since, service = ground.now(), fleet.serve(DRAIN_SECONDS="1")
    ground.upstream.script("words-12", Stream(words(12), hang_after=3))
    clients = Clients(service.port, ground.key)
    streams = all_of([clients.ask("words-12") for _ in range(STREAMS)])
    await until(lambda: sum(one.events == 3 for one in ground.upstream.served) == STREAMS, "the streams hang")
    assert await asyncio.to_thread(service.stop) == 0
    answered = await streams
    await settled(ground)
    audit = Audit(ground.house, clients.sent, ground.upstream.served, since)
    drift = limits.drift(ground.house)
    tally.add("SIGTERM, past the limit", audit, len(drift), f"{STREAMS} in flight")
    assert drift + audit.faults() == []
    assert {(one.reply.status, one.reply.end) for one in answered} == {(200, "cut")}
    assert all(b'data: {"error":{' in one.reply.body for one in answered)
    assert audit.counts()["records interrupted"] == STREAMS
