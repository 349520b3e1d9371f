"""Valkey is not there yet, goes away, comes back: no request notices, health is shared, the live feed recovers."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator

import pytest

from gateway.embedded.valkey import Valkey
from tests.faults import limits
from tests.faults.audit import Audit
from tests.faults.breakers import faults_of_sharing
from tests.faults.clients import Clients
from tests.faults.conftest import Ground, settled
from tests.faults.feed import cookie_of, make_admin, next_event
from tests.faults.fleet import Fleet
from tests.faults.tally import Tally


@pytest.fixture
def valkey(ground: Ground) -> Iterator[Valkey]:
    valkey = Valkey(ground.logs.parent)
    valkey.socket.unlink(missing_ok=True)
    yield valkey
    valkey.stop()


async def test_no_request_notices(ground: Ground, fleet: Fleet, valkey: Valkey, tally: Tally) -> None:
    since = ground.now()
    make_admin(ground.house)
    service = fleet.serve(VALKEY_URL=f"unix://{valkey.socket}")
    clients = Clients(service.port, ground.key)
    cookie = await asyncio.to_thread(cookie_of, service.port)
    events = 0
    async with clients.traffic(8) as healthy:
        await asyncio.sleep(1)  # without it
        found = await faults_of_sharing(ground, service, clients, "error-500", "html-502")
        valkey.start()
        for _ in range(2):
            assert (await next_event(service.port, cookie))["status"] == "completed"
            events += 1
            assert valkey.process is not None
            valkey.process.send_signal(signal.SIGKILL)
            valkey.process.wait()
            before = len(healthy)
            while len(healthy) < before + 40:
                await asyncio.sleep(0.02)
            valkey.start()
        freeze = time.monotonic()
        valkey.process.send_signal(signal.SIGSTOP)  # it takes connections, and says nothing
        while time.monotonic() - freeze < 3:
            await asyncio.sleep(0.02)
        valkey.process.send_signal(signal.SIGCONT)
        assert (await next_event(service.port, cookie))["status"] == "completed"
    await settled(ground)
    audit = Audit(ground.house, clients.sent, ground.upstream.served, since)
    drift = limits.drift(ground.house)
    tally.add("Valkey: gone, back, frozen", audit, len(drift), f"{events + 1} times the feed came back")
    assert await asyncio.to_thread(service.stop) == 0
    assert drift + found + audit.faults() == []
    assert [one.reply.describe() for one in healthy if not one.reply.whole] == []
