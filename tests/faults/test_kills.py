"""kill -9 of a worker, of the master, of Celery's worker and beat, with requests in flight: each is booked once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.embedded import children
from gateway.embedded.valkey import Valkey
from tests.faults import limits
from tests.faults.audit import Audit, Case
from tests.faults.clients import Clients, all_of
from tests.faults.conftest import Ground, settled
from tests.faults.fleet import Fleet, Service
from tests.faults.gates import Gate
from tests.faults.tally import Tally
from tests.faults.test_books import sweeper
from tests.faults.test_deploys import until
from tests.servers import ROOT, server_environment
from tests.upstream_scripts import Answer, Exchange, Stream, words

STREAMS = 40
SLOW = "words-40-every-5"
CELERY = [sys.executable, "-m", "celery", "-A", "gateway"]
JOBS = {"worker": ["worker", "-P", "threads", "-c", "2", "--loglevel", "INFO"], "beat": ["beat"]}


class Celery:
    """A worker and a beat, as in production."""

    def __init__(self, ground: Ground, home: Path) -> None:
        self.valkey = Valkey(home)
        self.url = f"unix://{self.valkey.socket}"
        self.environment = server_environment(ground.house.environment | {"VALKEY_URL": self.url})
        self.log = ground.logs / "celery.log"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        with self.log.open("ab") as log:
            for job in JOBS.values():
                self.processes.append(children.start([*CELERY, *job], env=self.environment, output=log, cwd=ROOT))

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes.clear()


@pytest.fixture
def celery(ground: Ground) -> Iterator[Celery]:
    celery = Celery(ground, ground.logs.parent)
    celery.valkey.start()
    yield celery
    celery.kill()
    celery.valkey.stop()


def owners(ground: Ground) -> dict[object, int]:
    return {row["id"]: row["pid"] for row in ground.house.query("SELECT id, pid FROM ledger_process")}


def busiest(ground: Ground, service: Service) -> int:
    """The pid of the worker that has most in flight: the kernel does not share connections out evenly."""
    holds = ground.house.query(
        "SELECT p.pid FROM ledger_hold h JOIN ledger_process p ON p.id = h.process_id"
        " GROUP BY p.pid ORDER BY count(*) DESC"
    )
    return next((row["pid"] for row in holds if row["pid"] in service.workers), service.workers[0])


def streaming(ground: Ground, count: int) -> bool:
    return sum(request.events > 2 and request.outcome == "running" for request in ground.upstream.served) >= count


def slow_down(ground: Ground, seconds: float) -> None:
    stream, whole = Stream(words(40), interval=seconds / 40), Answer("".join(words(40)), delay=seconds)

    async def script(exchange: Exchange) -> None:
        await (stream if exchange.body.get("stream") else whole)(exchange)

    ground.upstream.script(SLOW, script)


def gated(ground: Ground) -> Gate:
    gate = Gate(40)
    ground.upstream.script(SLOW, gate)
    return gate


async def test_a_worker_celery_and_beat_are_killed(
    ground: Ground, fleet: Fleet, celery: Celery, tally: Tally
) -> None:
    """What the worker had in flight is swept by the Celery that comes after."""
    since, service = ground.now(), fleet.serve(VALKEY_URL=celery.url)
    celery.start()
    gate = gated(ground)
    clients = Clients(service.port, ground.key)
    async with clients.traffic(4, ("words-12", "merged-9-every-2")):
        streams = all_of([clients.ask(SLOW) for _ in range(STREAMS)])
        await until(lambda: streaming(ground, STREAMS), "the streams run")
        victim = busiest(ground, service)
        os.kill(victim, signal.SIGKILL)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(celery.kill)
        await asyncio.sleep(0.5)
        celery.start()
        gate.open()
        await asyncio.to_thread(service.until_said, "worker ready", 3)
        await streams
    await settled(ground)
    assert await asyncio.to_thread(service.stop) == 0
    audit = Audit(ground.house, clients.sent, ground.upstream.served, since)
    drift = limits.drift(ground.house)
    tally.add("kill -9: worker, Celery, beat", audit, len(drift))
    assert drift + audit.faults() == []
    assert faults_of_killed(ground, audit, {victim}) == []


def faults_of_killed(ground: Ground, audit: Audit, victims: set[int]) -> list[str]:
    """Unknown is what a victim had in flight, nothing else; and every client of the others has its answer."""
    pids, found = owners(ground), list[str]()
    assert [case for case in audit.cases.values() if case.status == "unknown"], "nothing was in flight"
    for case in audit.cases.values():
        killed = bool(case.records) and pids[case.records[0]["process_id"]] in victims
        if case.status == "unknown" and not killed:
            found.append(f"unknown, and its process lived\n    {case.describe()}")
        elif not case.sent.reply.whole and not killed and not never_begun(case):
            found.append(f"no answer from a process that lived\n    {case.describe()}")
    return found


def never_begun(case: Case) -> bool:
    return not (case.sent.reply.status or case.served or case.records)


async def test_the_master_is_killed(ground: Ground, fleet: Fleet, tally: Tally) -> None:
    """Its workers drain and go with it, and another one starts where it was."""
    since, service, gate = ground.now(), fleet.serve(), gated(ground)
    clients, workers = Clients(service.port, ground.key), service.workers
    streams = all_of([clients.ask(SLOW) for _ in range(STREAMS)])
    await until(lambda: streaming(ground, STREAMS), "the streams run")
    service.kill()
    draining = lambda: sum(line["event"] == "draining" for line in service.lines())  # noqa: E731
    await until(lambda: draining() == len(workers), "the workers drain")
    gate.open()
    answered = await streams
    await until(lambda: not [pid for pid in workers if alive(pid)], "the workers have gone")
    successor = fleet.serve()
    afterwards = await all_of([clients.ask("words-12") for _ in range(8)])
    assert await asyncio.to_thread(successor.stop) == 0
    await settled(ground)
    audit = Audit(ground.house, clients.sent, ground.upstream.served, since)
    drift = limits.drift(ground.house)
    tally.add("kill -9: the master", audit, len(drift))
    assert drift + audit.faults() == []
    assert [one.reply.describe() for one in [*answered, *afterwards] if not one.reply.whole] == []


async def test_master_and_workers_are_killed_at_once(ground: Ground, fleet: Fleet, tally: Tally) -> None:
    """As when the machine's memory runs out: all of it is swept, once."""
    since, service = ground.now(), fleet.serve()
    gated(ground)
    clients, workers = Clients(service.port, ground.key), service.workers
    with sweeper(ground):
        streams = all_of([clients.ask(SLOW, stream=n % 4 > 0) for n in range(STREAMS)])
        await until(lambda: streaming(ground, STREAMS * 3 // 4), "the streams run")
        service.kill()
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await streams
        await settled(ground)
    audit = Audit(ground.house, clients.sent, ground.upstream.served, since)
    drift = limits.drift(ground.house)
    tally.add("kill -9: all at once", audit, len(drift))
    assert drift + audit.faults() == []
    assert faults_of_killed(ground, audit, set(workers)) == []


def alive(pid: int) -> bool:
    """And not a zombie that nobody has waited for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
