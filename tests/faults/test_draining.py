"""Deploys lose nothing: every server is replaced under load by SIGTERM, and every answer arrives whole."""

from __future__ import annotations

import time

from tests.faults.audit import Audit
from tests.faults.conftest import Ground
from tests.faults.fleet import Fleet
from tests.faults.load import Load
from tests.faults.tally import Tally

ROUNDS = 3
CLIENTS = 16


def test_a_rolling_restart_loses_nothing(ground: Ground, fleet: Fleet, tally: Tally) -> None:
    since = ground.now()
    fleet.start()
    fleet.start()
    for process in fleet.live:
        process.wait_until_listening()
    load = Load(fleet.port, [ground.key], seed=7, workers=CLIENTS)
    load.whole_only = True
    load.start()
    for _ in range(ROUNDS):
        oldest, fresh = fleet.live[0], fleet.start()
        fresh.wait_until_listening()
        time.sleep(0.3)
        assert oldest.stop() == 0, oldest.log.read_text()[-2000:]
    load.stop()
    for process in fleet.live:
        assert process.stop() == 0
    audit = Audit(ground.house, load.sent, ground.upstream.served, since)
    tally.add("servers replaced one by one", audit, 0)
    assert audit.faults() == []
    broken = [case for case in audit.cases.values() if not case.sent.reply.whole]
    # A kept connection that is closed as idle may cross a request on its way. Nobody has begun that one.
    begun = [case.describe() for case in broken if case.sent.reply.status or case.served or case.records]
    assert not begun, f"{len(begun)} of {len(load.sent)}: {begun[:5]}"
    assert len(broken) <= ROUNDS * CLIENTS
    assert audit.counts()["records completed"] == len(load.sent) - len(broken) > 100
    assert ground.house.manage("verify_ledger").endswith("drift: 0\n")
