"""Kill, stop, freeze and cut everything at random moments under load; then every request is in the books once, and
no limit was exceeded: one budget runs out on the way.

FAULTS_SEED repeats a run's draws (not its timing), FAULTS_KILLS asks for more of them.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from gateway.embedded import children
from tests.faults.audit import Audit
from tests.faults.conftest import Ground
from tests.faults.fleet import Fleet, Process
from tests.faults.limits import LimitAudit, drift
from tests.faults.load import Load
from tests.faults.tally import Tally
from tests.servers import ROOT, server_environment

KILLS = int(os.environ.get("FAULTS_KILLS", "50"))
SEED = int(os.environ.get("FAULTS_SEED", str(random.SystemRandom().randrange(10**6))))
MOST_SECONDS = 900  # for the kills, on a slow machine
CLIENTS = 20
LATE = 3  # requests at least that a frozen server has in flight, so that some are settled late
HELD_BY = """
SELECT count(*) AS held FROM ledger_hold h JOIN ledger_process p ON p.id = h.process_id WHERE p.pid = %s
"""
LEASE_SECONDS = 7  # of the sweeper here: a process beats every 5 s


class Trouble:
    """What happens to the database and to one server while the others are killed. From the main thread."""

    def __init__(self, ground: Ground, fleet: Fleet, draw: random.Random) -> None:
        self.cluster, self.fleet, self.draw = ground.cluster, fleet, draw
        self.house = ground.house
        self.counts: Counter[str] = Counter()
        self.found: list[str] = []
        self.frozen: Process | None = None
        self.kills = 0
        self._victims: list[Process] = []
        self._thaw_at = 0.0
        faults = [self.stop, self.power_cut, self.freeze, self.crash]
        self._plan = [*faults, self.long_freeze, *faults, self.long_stop]

    def next(self, victims: list[Process]) -> int:
        """The next fault of the database; most take a server with them. How many were killed."""
        before = self.kills
        self._victims = victims
        if self._plan:
            self._plan.pop(0)()
        return self.kills - before

    def compare(self) -> None:
        """Counters of limits with the ledger, while requests run and holds of the dead are still there."""
        try:
            self.found += drift(self.house)
        except psycopg.OperationalError:
            return  # it recovers
        self.counts["comparisons under load"] += 1

    def _wait(self, seconds: float) -> None:
        """The database is away. Somewhere in the middle of it a server is killed, with what it had yet to write."""
        moment = self.draw.uniform(0, seconds)
        time.sleep(moment)
        if self._victims:
            self._victims.pop().kill()
            self.kills += 1
        time.sleep(seconds - moment)

    def stop(self, seconds: float | None = None) -> None:
        self.counts["databases stopped"] += 1
        self.cluster.stop(signal.SIGINT)
        self._wait(self.draw.uniform(0, 3) if seconds is None else seconds)
        self.cluster.start()

    def power_cut(self) -> None:
        self.counts["databases cut off"] += 1
        self.cluster.stop(signal.SIGQUIT)
        self._wait(self.draw.uniform(0, 2))
        self.cluster.start()

    def freeze(self, seconds: float | None = None) -> None:
        self.counts["databases frozen"] += 1
        self.cluster.freeze()
        self._wait(self.draw.uniform(0.2, 3) if seconds is None else seconds)
        self.cluster.thaw()

    def crash(self) -> None:
        self.counts["database sessions killed"] += 1
        self.cluster.kill_a_desks_session()

    def long_freeze(self) -> None:
        self.freeze(12)  # longer than an admission waits

    def long_stop(self) -> None:
        self.stop(9)

    def freeze_server(self, process: Process) -> None:
        """For longer than two leases: it is taken for dead, and comes back with settlements."""
        self.counts["servers frozen"] += 1
        deadline = time.monotonic() + 30
        process.freeze()
        while self._held_by(process) < LATE and time.monotonic() < deadline:
            process.thaw()
            time.sleep(0.2)
            process.freeze()
        self.frozen, self._thaw_at = process, time.monotonic() + 3 * LEASE_SECONDS + 2

    def _held_by(self, process: Process) -> int:
        try:
            return int(self.house.query(HELD_BY, [process.pid])[0]["held"])
        except psycopg.OperationalError:
            return 0  # it recovers

    def thaw_server(self, *, wait: bool = False) -> None:
        if self.frozen is None:
            return
        if wait:
            time.sleep(max(0.0, self._thaw_at - time.monotonic()))
        if time.monotonic() >= self._thaw_at:
            self.frozen.thaw()
            self.frozen = None


@contextmanager
def sweeper(ground: Ground) -> Iterator[None]:
    with (ground.logs / "sweeper.log").open("wb") as log:
        process = children.start(
            [sys.executable, "-m", "tests.faults.sweeping", str(LEASE_SECONDS)],
            env=server_environment(ground.house.environment),
            output=log,
            cwd=ROOT,
        )
    try:
        yield
        assert process.poll() is None, "the sweeper ended by itself"
    finally:
        process.kill()
        process.wait()


def kill_them(fleet: Fleet, trouble: Trouble, draw: random.Random) -> int:
    """Two servers at a time; each is killed at a random moment once two new ones listen. How many were killed."""
    fleet.start()
    fleet.start()
    kills, deadline, turn = 0, time.monotonic() + MOST_SECONDS, 0
    while kills < KILLS and time.monotonic() < deadline:
        old = [process for process in fleet.live if process is not trouble.frozen]
        fresh = [fleet.start(), fleet.start()]
        turn += 1
        if turn % 2 == 0:
            kills += trouble.next(old)
        for process in fresh:
            process.wait_until_listening()
        trouble.thaw_server()
        trouble.compare()
        if turn in (3, 11):
            trouble.freeze_server(old.pop())
        for process in old:
            time.sleep(draw.uniform(0, 0.8))
            process.kill()
            kills += 1
    return kills


def wait_for_the_sweeper(ground: Ground) -> None:
    """Two looks a lease apart, and what it takes to write them."""
    deadline = time.monotonic() + 20 * LEASE_SECONDS
    while ground.house.query("SELECT 1 FROM ledger_hold LIMIT 1") and time.monotonic() < deadline:
        time.sleep(0.3)


def finish(ground: Ground, fleet: Fleet, trouble: Trouble, load: Load) -> None:
    trouble.thaw_server(wait=True)
    load.stop()
    for process in fleet.live:
        assert process.stop() == 0, process.log.read_text()[-2000:]
    wait_for_the_sweeper(ground)


def unexpected_lines(fleet: Fleet) -> list[str]:
    """Errors in the servers' logs that no fault here explains."""
    known = ("The database is away", "request")  # a request's own line: the audit has read its status
    return [
        f"server {process.number}: {line}"
        for process in fleet.processes
        for line in process.lines()
        if line.get("level") in ("error", "critical") and not str(line.get("event", "")).startswith(known)
    ]


def test_every_request_is_in_the_books_once(
    ground: Ground, fleet: Fleet, capsys: pytest.CaptureFixture[str], tally: Tally
) -> None:
    draw, began, since = random.Random(SEED), time.monotonic(), ground.now()
    trouble = Trouble(ground, fleet, draw)
    load = Load(fleet.port, [ground.key, *ground.tight], SEED, workers=CLIENTS)
    with capsys.disabled():
        print(f"\nfaults: seed {SEED}, {CLIENTS} clients", flush=True)
    with sweeper(ground):
        load.start()
        kills = kill_them(fleet, trouble, draw)
        finish(ground, fleet, trouble, load)
    verified = ground.house.command("manage.py", "verify_ledger")
    audit = Audit(ground.house, load.sent, ground.upstream.served, since)
    audit.look_at_processes(fleet.processes, ground.cluster.silences)
    limits = LimitAudit(ground.house)
    tally.add("kill -9, stop, freeze, cut", audit, len(trouble.found), f"{kills} killed")
    counts: dict[str, Any] = {
        "servers started": len(fleet.processes),
        "servers killed": kills,
        **trouble.counts,
        "databases started": ground.cluster.starts,
        **audit.counts(),
        "seconds": round(time.monotonic() - began),
    }
    faults = audit.faults() + trouble.found + limits.faults() + unexpected_lines(fleet)
    with capsys.disabled():
        print("\n".join(f"faults: {name}: {count}" for name, count in counts.items()))
        print(f"faults: {verified.stdout.strip()}", flush=True)
        print(*faults[:10], sep="\n")
    assert not faults, f"{len(faults)} faults (seed {SEED}); the first:\n" + "\n".join(faults[:10])
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert kills >= KILLS, f"only {kills} kills in {MOST_SECONDS} s: is this machine that slow?"
    assert limits.run_out == ["budget"]
    nothing = [name for name, count in counts.items() if not count]
    assert not nothing, f"this run says nothing of: {', '.join(nothing)}"
