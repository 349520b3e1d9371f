"""`manage.py serve` under load: deploys by SIGHUP, ends by SIGTERM, masters and workers that are killed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.faults.audit import Audit
from tests.faults.conftest import Ground
from tests.faults.gates import Gate
from tests.faults.load import Load, Sent
from tests.faults.test_kills import alive
from tests.faults.wire import Goodbye
from tests.servers import RunningServer, running_server

SERVE = ("manage.py", "serve", "--workers", "2")
STREAMS = 64
LONG = "words-50-every-120"  # 6 s
SHORT = "words-40-every-5"
WAIT_SECONDS = 240


class Only(Load):
    """Streams of one model; their numbers do not meet those of another load."""

    def __init__(self, port: int, key: str, *, model: str, first: int, workers: int, pause: float = 0.08) -> None:
        super().__init__(port, [key], first, workers=workers, pause=pause)
        self.model, self.first = model, first

    def _next(self) -> Sent:
        return Sent(self.first + len(self.sent), self.model, True, True, Goodbye())

    def begin_no_more(self) -> None:
        self._stopping.set()


def in_flight(ground: Ground) -> int:
    """Streams that the provider is in the middle of."""
    return sum(one.outcome == "running" and one.events > 0 for one in list(ground.upstream.served))


def gated(ground: Ground) -> Gate:
    gate = Gate(50)
    ground.upstream.script(LONG, gate)
    return gate


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def events(server: RunningServer, name: str) -> list[dict[str, Any]]:
    return [line for line in server.lines() if line["event"] == name]


def workers(server: RunningServer) -> set[int]:
    found = {line["pid"] for line in events(server, "worker ready")}
    return found - {line["pid"] for name in ("worker died", "worker left") for line in events(server, name)}


@contextmanager
def serving(ground: Ground, **extra: str) -> Iterator[RunningServer]:
    environment = {**ground.house.environment, "DRAIN_SECONDS": "20", **extra}
    with running_server(environment, command=SERVE) as server:
        until(lambda: len(workers(server)) == 2)
        yield server


def all_is_whole_and_booked(ground: Ground, since: Any, *loads: Load) -> int:
    """How many there were."""
    sent = [one for load in loads for one in load.sent]
    broken = [f"{one.marker} {one.reply.describe()}" for one in sent if not one.reply.whole]
    assert not broken, f"{len(broken)} of {len(sent)}: {broken[:5]}"
    audit = Audit(ground.house, sent, ground.upstream.served, since)
    assert audit.faults() == []
    assert audit.counts()["records completed"] == len(sent)
    assert ground.house.manage("verify_ledger").endswith("drift: 0\n")
    return len(sent)


def test_a_reload_refuses_nothing_and_breaks_nothing(ground: Ground) -> None:
    since = ground.now()
    with serving(ground) as server:
        streams = Only(server.port, ground.key, model=LONG, first=100_000, workers=STREAMS)
        short = Only(server.port, ground.key, model=SHORT, first=200_000, workers=8, pause=0.02)
        streams.start()
        short.start()
        for wanted in (1, 3):
            until(lambda: in_flight(ground) >= STREAMS * 3 // 4)
            before = workers(server)
            server.process.send_signal(signal.SIGHUP)
            if wanted == 3:  # ... and one more while that is going on: remembered, not lost
                until(lambda: len(events(server, "reloading")) == 2)
                server.process.send_signal(signal.SIGHUP)
            until(lambda wanted=wanted: len(events(server, "reloaded")) == wanted)  # type: ignore[misc]
            until(lambda before=before: not workers(server) & before)  # type: ignore[misc]
        streams.stop()
        short.stop()
        assert server.stop() == 0
        running = [line["running"] for line in events(server, "draining")]
    total = all_is_whole_and_booked(ground, since, streams, short)
    print(f"\n3 reloads of 2 workers: {total} requests, 0 refused, 0 broken; running when told to go: {running}")
    assert sum(running) > STREAMS // 2


def test_sigterm_lets_64_streams_finish_and_books_them(ground: Ground) -> None:
    since, gate = ground.now(), gated(ground)
    with serving(ground) as server:
        streams = Only(server.port, ground.key, model=LONG, first=300_000, workers=STREAMS)
        streams.start()
        until(lambda: in_flight(ground) >= STREAMS)
        streams.begin_no_more()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: len(events(server, "draining")) == 2)
        until(server.refuses)  # each says that it drains, and closes its socket then
        gate.open()
        streams.stop()
        assert server.process.wait(WAIT_SECONDS) == 0
        running = [line["running"] for line in events(server, "draining")]
    assert sum(running) == all_is_whole_and_booked(ground, since, streams) == STREAMS
    print(f"\nSIGTERM: {running} streams in flight, 0 broken, 0 unrecorded")


def test_a_master_that_is_killed_lets_its_workers_drain(ground: Ground) -> None:
    since, gate = ground.now(), gated(ground)
    with serving(ground) as server:
        streams = Only(server.port, ground.key, model=LONG, first=400_000, workers=STREAMS)
        streams.start()
        until(lambda: in_flight(ground) >= STREAMS)
        streams.begin_no_more()
        left = workers(server)
        server.process.kill()
        until(lambda: len(events(server, "draining")) == 2)
        gate.open()
        streams.stop()
        until(lambda: not any(alive(pid) for pid in left))
        server.process.wait()
    assert all_is_whole_and_booked(ground, since, streams) == STREAMS


def test_a_worker_that_grows_is_replaced_and_nobody_notices(ground: Ground) -> None:
    """The limit is one that every worker is above from its start on: it is replaced again and again."""
    since = ground.now()
    with serving(ground, WORKER_MAX_MEMORY_MB="64") as server:
        streams = Only(server.port, ground.key, model=LONG, first=500_000, workers=STREAMS)
        streams.start()
        until(lambda: len(events(server, "worker left")) >= 3)
        streams.stop()
        large = events(server, "worker is too large")
        assert server.stop() == 0
    assert all(line["memory_mb"] > 64 == line["limit_mb"] for line in large)
    total = all_is_whole_and_booked(ground, since, streams)
    print(f"\n{len(large)} replaced for their size: {total} requests, 0 broken")
