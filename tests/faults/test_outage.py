"""The database goes away and comes back: what runs goes on, what is new is told to come again."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.faults import limits
from tests.faults.audit import DELIVERED, Audit
from tests.faults.breakers import faults_of_sharing
from tests.faults.clients import HEALTHY, Clients
from tests.faults.conftest import Ground, settled
from tests.faults.fleet import Fleet, Process
from tests.faults.gates import Gate
from tests.faults.load import Sent
from tests.faults.tally import Tally
from tests.faults.wire import Reply, Wire
from tests.upstream_scripts import Answer, Stream, usage_of, words

PATIENCE_SECONDS = 180


@pytest.fixture
def server(fleet: Fleet, ground: Ground) -> Iterator[Process]:
    process = fleet.start()
    process.wait_until_listening()
    yield process
    if ground.cluster.postgres.process is None or ground.cluster.postgres.process.poll() is not None:
        ground.cluster.start()


class Asker:
    """Requests in the background, looked at while they run."""

    def __init__(self, fleet: Fleet, ground: Ground) -> None:
        self.fleet, self.ground = fleet, ground

    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.ground.key}", "content-type": "application/json"}

    def body(self, model: str = "words-12", **more: Any) -> bytes:
        return json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}).encode()

    async def ask(self, model: str = "words-12", **more: Any) -> Reply:
        return await Wire(self.fleet.port, keep=False).post(self.body(model, **more), self.headers())


async def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


def records(ground: Ground, user: str) -> list[dict[str, Any]]:
    return ground.house.query("SELECT * FROM ledger_usagerecord WHERE end_user = %s", [user])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
async def test_running_requests_outlast_an_outage(ground: Ground, fleet: Fleet, server: Process, how: int) -> None:
    asker = Asker(fleet, ground)
    scripts = {"words-12": Gate(50), "slow-120": Gate(2)}
    for model, gate in scripts.items():
        ground.upstream.script(model, gate)
    streamed = asyncio.create_task(asker.ask(stream=True, user=f"streamed-{how}"))
    whole = asyncio.create_task(asker.ask("slow-120", user=f"whole-{how}"))
    await until(lambda: len(ground.upstream.served) == 2, "both requests reach the provider")

    ground.cluster.stop(how)
    for gate in scripts.values():
        gate.open()
    await until(
        lambda: all(request.outcome == "whole" for request in ground.upstream.served), "the provider is through"
    )
    assert not streamed.done()  # its text is out, but [DONE] waits for the books
    assert not whole.done()

    ground.cluster.start()
    for reply, user, count in ((await streamed, f"streamed-{how}", 50), (await whole, f"whole-{how}", 2)):
        assert reply.whole, reply.describe()
        (record,) = records(ground, user)
        assert (record["status"], record["estimated"]) == ("completed", False)
        assert record["output_tokens"] == count
        assert record["input_tokens"] == usage_of({"messages": [{"content": "Hello"}]}, 0)["prompt_tokens"]
    assert (await asker.ask(stream=True, user="afterwards")).whole


async def test_new_requests_are_refused_during_an_outage(ground: Ground, fleet: Fleet, server: Process) -> None:
    asker = Asker(fleet, ground)
    assert (await asker.ask()).whole
    before = len(ground.upstream.served)
    ground.cluster.stop()
    for stream in (False, True, False):
        reply = await asker.ask(stream=stream)
        assert (reply.status, reply.end) == (503, "whole"), reply.describe()
        assert int(reply.headers["retry-after"]) > 0
        assert set(json.loads(reply.body)["error"]) == {"message", "type", "param", "code"}
    assert len(ground.upstream.served) == before
    ground.cluster.start()

    async def served() -> bool:
        return (await asker.ask()).whole

    deadline = time.monotonic() + PATIENCE_SECONDS
    while not await served():
        assert time.monotonic() < deadline, "it serves again"
        await asyncio.sleep(0.1)


async def test_a_client_that_leaves_during_an_outage_is_booked_after_it(
    ground: Ground, fleet: Fleet, server: Process
) -> None:
    asker = Asker(fleet, ground)
    ground.upstream.script("words-12", Stream(words(3), hang_after=3))
    body, reply = asker.body(stream=True, user="left-in-the-dark"), Reply()
    task = asyncio.create_task(Wire(fleet.port, keep=False).post(body, asker.headers(), reply=reply))
    await until(lambda: DELIVERED.search(reply.body), "the stream runs")
    ground.cluster.stop()
    task.cancel()
    assert await asyncio.to_thread(ground.upstream.served[0].ended.wait, PATIENCE_SECONDS)
    assert ground.upstream.served[0].outcome == "gone"
    ground.cluster.start()
    await until(lambda: records(ground, "left-in-the-dark"), "it is booked")
    (record,) = records(ground, "left-in-the-dark")
    assert (record["status"], record["estimated"], record["error_code"]) == (
        "interrupted",
        True,
        "client_disconnected",
    )
    assert record["output_tokens"] > 0


async def test_a_server_that_starts_during_an_outage_serves_after_it(ground: Ground, fleet: Fleet) -> None:
    asker = Asker(fleet, ground)
    ground.cluster.stop()
    process = fleet.start()
    process.wait_until_listening()
    reply = await asker.ask()
    assert reply.status == 503, reply.describe()
    ground.cluster.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (await asker.ask()).whole:
        assert time.monotonic() < deadline, "it serves"
        await asyncio.sleep(0.1)


async def begun(clients: Clients, ground: Ground) -> tuple[str, asyncio.Task[Sent]]:
    """A key, and its request that the provider is answering. A worker may yet have to find its database again."""
    asked = lambda: [one.model for one in ground.upstream.served].count("slow-120")  # noqa: E731
    deadline, before = time.monotonic() + PATIENCE_SECONDS, asked()
    while True:
        key = uuid.uuid4().hex
        task = asyncio.create_task(clients.ask("slow-120", stream=False, idempotency_key=key))
        await until(lambda task=task: task.done() or asked() > before, "it runs")  # type: ignore[misc]
        if not task.done():
            return key, task
        reply = task.result().reply
        assert (reply.status, time.monotonic() < deadline) == (503, True), reply.describe()


async def test_workers_under_load_outlast_restarts(ground: Ground, fleet: Fleet, tally: Tally) -> None:
    """And so do an Idempotency-Key that is in use meanwhile, and what workers tell each other of deployments."""
    since, service = ground.now(), fleet.serve()
    clients, keyed = Clients(service.port, ground.key), []
    ground.upstream.script("slow-120", Answer("".join(words(5)), delay=3))
    async with clients.traffic(10, ("words-12", "words-40-every-5", "merged-9-every-2", "cut-4-every-5", "drop")):
        for how in (signal.SIGINT, signal.SIGQUIT):
            key, task = await begun(clients, ground)
            ground.cluster.stop(how)
            await asyncio.sleep(2)
            ground.cluster.start()
            keyed.append((key, await task))
    again = Clients(service.port, ground.key)
    for key, sent in keyed:
        assert sent.reply.whole, sent.reply.describe()
        first, once_more = sent.reply.body, await again.again(sent, idempotency_key=key)
        assert once_more.reply.headers["idempotent-replayed"] == "true"
        assert once_more.reply.body == first
    found = await faults_of_sharing(ground, service, clients, "error-500", "html-502")
    async with clients.traffic(4, HEALTHY[:2]) as healthy:
        await asyncio.sleep(1)
    await settled(ground)
    assert await asyncio.to_thread(service.stop) == 0
    for _, sent in keyed:  # a repeat has an id of its own
        sent.reply.headers["x-request-id"] = sent.reply.headers["x-counterfoil-original-request-id"]
    audit = Audit(ground.house, clients.sent, ground.upstream.served, since)
    drift = limits.drift(ground.house)
    tally.add("PostgreSQL restarted", audit, len(drift), "twice, once by SIGQUIT")
    assert drift + found + audit.faults() == []
    assert [one.reply.describe() for one in healthy if not one.reply.whole] == []
