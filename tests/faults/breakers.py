"""What one worker finds out about a deployment, all of them know within a moment."""

from __future__ import annotations

import asyncio
import time

from tests.faults.clients import Clients
from tests.faults.conftest import Ground
from tests.faults.fleet import Service
from tests.faults.wire import Wire

HEARD_SECONDS = 2.5  # half a second between two looks, and a machine that does other things
MOST_ASKED = 60
PATIENCE_SECONDS = 60


async def wires_of_workers(ground: Ground, service: Service, clients: Clients) -> list[Wire]:
    """A kept connection to each of the workers, known by who booked its request."""
    pids = {row["id"]: row["pid"] for row in ground.house.query("SELECT id, pid FROM ledger_process")}
    found: dict[int, Wire] = {}
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        wire = Wire(service.port, keep=True)
        sent = await clients.ask("words-12", stream=False, wire=wire)
        assert sent.reply.whole, sent.reply.describe()
        (row,) = ground.house.query("SELECT process_id FROM ledger_usagerecord WHERE end_user = %s", [sent.marker])
        if row["process_id"] not in pids:
            pids = {row["id"]: row["pid"] for row in ground.house.query("SELECT id, pid FROM ledger_process")}
        if found.setdefault(pids[row["process_id"]], wire) is not wire:
            wire.hang_up()
        if len(found) == len(service.workers):
            return list(found.values())
    raise AssertionError("a worker answers nobody")


async def faults_of_sharing(ground: Ground, service: Service, clients: Clients, *models: str) -> list[str]:
    """One worker learns that a model's only deployment fails; then no worker asks it.

    The models are tried in turn until it is so: one worker may be kept from its work just then, and hears late.
    """
    found = list[str]()
    for model in models:
        found = await _faults_of_sharing(ground, service, clients, model)
        if not found:
            break
    return found


async def _faults_of_sharing(ground: Ground, service: Service, clients: Clients, model: str) -> list[str]:
    first, *others = await wires_of_workers(ground, service, clients)
    for _ in range(MOST_ASKED):
        if (await clients.ask(model, stream=False, wire=first)).reply.status == 503:
            break
    else:
        return [f"the breaker of {model} does not open"]
    opened = time.monotonic()
    await asyncio.sleep(HEARD_SECONDS)
    before = [one.model for one in ground.upstream.served].count(model)
    replies = [(await clients.ask(model, stream=False, wire=wire)).reply for wire in others for _ in range(4)]
    found = [f"not heard of: {reply.describe()}" for reply in replies if reply.status != 503]
    if [one.model for one in ground.upstream.served].count(model) != before:
        found.append("the provider was asked, though the breaker is open")
    for wire in (first, *others):
        wire.hang_up()
    if time.monotonic() - opened > 4.5:
        found.clear()  # so slow a machine says nothing: it was half open already
    return found
