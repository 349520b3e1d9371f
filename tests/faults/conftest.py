"""The ground that the faults happen on: a PostgreSQL of their own, a scripted provider, a house between them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from django.conf import settings

from gateway.embedded import locks
from tests.faults import load
from tests.faults.cluster import Cluster
from tests.faults.fleet import Fleet, Service
from tests.faults.tally import Tally
from tests.house import House
from tests.upstream import Upstream

TALLY = Tally()
SETTLED_SECONDS = 180


@dataclass
class Ground:
    cluster: Cluster
    house: House
    upstream: Upstream
    key: str  # of acme, whose limits are wide
    tight: list[str]  # of tight: one with a budget that runs out, one whose budget is wide
    logs: Path

    def now(self) -> datetime:
        """The database's clock."""
        return datetime.fromisoformat(str(self.house.query("SELECT now() AS now")[0]["now"]))


async def settled(ground: Ground) -> None:
    """What was cut is booked without anybody waiting for it; and what a dead process left, by the sweeper."""
    deadline = time.monotonic() + SETTLED_SECONDS
    while ground.house.query("SELECT 1 FROM ledger_hold LIMIT 1"):
        assert time.monotonic() < deadline, "holds are left"
        await asyncio.sleep(0.05)


@pytest.fixture(scope="session")
def whole_ground() -> Iterator[Ground]:
    home = Path(settings.COUNTERFOIL_HOME) / "faults"
    alone = locks.open_file(settings.COUNTERFOIL_HOME, "faults")
    locks.wait(alone, shared=False, seconds=600, doing="Another run of this suite")
    cluster = Cluster(home)
    try:
        cluster.start()
        environment = {
            "FAULTS_PROVIDER_KEY": "sk-of-the-provider",
            "VALKEY_URL": f"unix://{home}/nobody-there.sock",  # nothing on the path of a request needs it
            "DRAIN_SECONDS": "20",
        }
        house = House(home, cluster.sockets, "faults", environment)
        house.create()
        with Upstream() as upstream:
            house.apply(load.catalogue(upstream.url))
            key = house.manage("issue_key", "--tenant", "acme", "--name", "load").strip()
            tight = [
                house.manage("issue_key", "--tenant", "tight", "--name", n).strip() for n in ("budget", "expected")
            ]
            house.apply(load.catalogue(upstream.url, keys=True))
            yield Ground(cluster, house, upstream, key, tight, home / "logs")
    finally:
        cluster.close()
        os.close(alone)


@pytest.fixture
def ground(whole_ground: Ground) -> Ground:
    whole_ground.upstream.reset()
    return whole_ground


@pytest.fixture
def fleet(ground: Ground) -> Iterator[Fleet]:
    fleet = Fleet(ground.house.environment, ground.logs)
    yield fleet
    fleet.close()


@pytest.fixture(scope="module")
def service(whole_ground: Ground) -> Iterator[Service]:
    """Two workers for all tests of a file, which leave them well."""
    fleet = Fleet(whole_ground.house.environment, whole_ground.logs)
    service = fleet.serve()
    yield service
    assert service.stop() == 0, service.log.read_text()[-4000:]
    fleet.close()


@pytest.fixture(scope="session")
def tally() -> Tally:
    return TALLY


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    TALLY.seconds[report.nodeid.partition("::")[0]] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY.rows:
        terminalreporter.section("counts")
        for line in TALLY.lines():
            terminalreporter.write_line(line)
    terminalreporter.section("seconds")
    for part, seconds in TALLY.seconds.items():
        terminalreporter.write_line(f"{seconds:6.1f}  {part}")
