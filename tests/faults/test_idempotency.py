"""Idempotency-Key under kill -9 and clients that hang up: asked until there is an answer, charged once.

The provider may see a request again only if the process died that had asked it first.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import uuid
from collections import Counter
from collections.abc import Iterator

from tests.faults import limits
from tests.faults.clients import Clients
from tests.faults.conftest import Ground, settled
from tests.faults.fleet import Fleet, Service
from tests.faults.load import Sent
from tests.faults.tally import Tally
from tests.faults.test_books import sweeper
from tests.faults.test_deploys import until
from tests.faults.test_kills import SLOW, busiest, slow_down
from tests.faults.wire import Goodbye
from tests.house import Row
from tests.upstream import Served

KEYS = 60
KILLS = 3
MODELS = (SLOW, "words-25-every-30", "slow-120")
AT_LEAST = 4  # in flight when a worker is killed
MOST_SECONDS = 480


class Repeater:
    """One client with one key, who asks until it has an answer and hangs up now and then."""

    def __init__(self, clients: Clients, draw: random.Random, number: int) -> None:
        self.clients, self.draw = clients, draw
        self.key = uuid.uuid4().hex
        self.model, self.stream = draw.choice(MODELS), number % 3 > 0
        self.first: Sent | None = None
        self.tries: Counter[str] = Counter()
        self.lost = False

    @property
    def sent(self) -> Sent:
        assert self.first is not None
        return self.first

    async def run(self) -> None:
        await asyncio.sleep(self.draw.uniform(0, 2))
        for attempt in range(1000):
            await self._ask(self._goodbye() if attempt < 3 else Goodbye())
            reply = self.sent.reply
            self.tries[str(reply.status) if reply.end == "whole" else reply.end] += 1
            if reply.whole:
                return
            if reply.status == 409 and reply.headers.get("x-should-retry") == "false":
                self.lost = True
                return
            await asyncio.sleep(self.draw.uniform(0.1, 0.6))

    async def _ask(self, goodbye: Goodbye) -> None:
        if self.first is None:
            self.first = await self.clients.ask(
                self.model, stream=self.stream, goodbye=goodbye, idempotency_key=self.key
            )
        else:
            self.first.goodbye = goodbye
            await self.clients.again(self.first, idempotency_key=self.key)

    def _goodbye(self) -> Goodbye:
        draw = self.draw
        if draw.random() < 0.5:
            return Goodbye(after_received=draw.randrange(1, 3000), reset=draw.random() < 0.5)
        return Goodbye(after_seconds=draw.uniform(0.01, 0.4), reset=draw.random() < 0.5)


async def ask_and_kill(ground: Ground, service: Service, repeaters: list[Repeater]) -> None:
    """A worker is killed while a share of them asks: on a slow machine all of them would be through before."""
    asking, share = list[asyncio.Task[None]](), len(repeaters) // KILLS
    for number in range(KILLS):
        asking += [asyncio.create_task(one.run()) for one in repeaters[number * share : (number + 1) * share]]
        await until(lambda: len(ground.house.query("SELECT 1 FROM ledger_hold")) >= AT_LEAST, "some are in flight")
        os.kill(busiest(ground, service), signal.SIGKILL)
        await asyncio.to_thread(service.until_said, "worker ready", 3 + number)
    await asyncio.gather(*asking)


async def test_a_key_is_answered_and_charged_once(ground: Ground, fleet: Fleet, tally: Tally) -> None:
    since, service, draw = ground.now(), fleet.serve(), random.Random(5)
    clients = Clients(service.port, ground.key)
    slow_down(ground, 1.5)
    repeaters = [Repeater(clients, draw, number) for number in range(KEYS)]
    with sweeper(ground):
        async with asyncio.timeout(MOST_SECONDS):
            await ask_and_kill(ground, service, repeaters)
        await settled(ground)
    assert await asyncio.to_thread(service.stop) == 0
    records = ground.house.query("SELECT * FROM ledger_usagerecord WHERE started_at >= %s", [since])
    drift = limits.drift(ground.house)
    tries, unknown = sum((one.tries for one in repeaters), Counter()), sum(r["status"] == "unknown" for r in records)
    lost = sum(one.lost for one in repeaters)
    note = f"tries {dict(tries)}, {KILLS} workers killed, {lost} answers lost after they were charged"
    tally.note(
        "Idempotency-Key",
        requests=sum(tries.values()),
        whole=tries["200"],
        left=tries["left"],
        seen=len(ground.upstream.served),
        completed=sum(record["status"] == "completed" for record in records),
        unknown=unknown,
        drift=len(drift),
        said=note,
    )
    found = drift + [
        f"{fault}\n    {one.sent.marker} {one.tries}, {one.sent.reply.describe()}"
        for one in repeaters
        for fault in faults_of(one, records, ground.upstream.served)
    ]
    assert not found, "\n".join(found[:10])
    assert unknown, "nothing was in flight when workers were killed"
    assert tries["left"] > KEYS // 2


def faults_of(one: Repeater, records: list[Row], served: list[Served]) -> Iterator[str]:
    sent = one.sent
    mine = [record for record in records if record["end_user"] == sent.marker]
    calls = [request for request in served if request.marker == sent.marker]
    statuses = Counter(record["status"] for record in mine)
    if set(statuses) - {"completed", "unknown"}:
        yield f"records of other kinds: {dict(statuses)}"
    if statuses["completed"] != 1:
        yield f"charged {statuses['completed']} times: {dict(statuses)}"
    if len(calls) > 1 + statuses["unknown"]:
        yield f"the provider was asked {len(calls)} times, and {statuses['unknown']} processes died"
    usage = [request.usage for request in calls if request.usage][-1:]
    charged = sum(record["charge"] or 0 for record in mine)
    if usage and charged != 1000 * usage[0]["prompt_tokens"] + 2000 * usage[0]["completion_tokens"]:
        yield f"charged {charged} for {usage}"
    if not one.lost and text_of(sent) not in (
        "".join(f"w{n} " for n in range(40))[: len(text_of(sent))],
        "Hello there.",
    ):
        yield f"another answer: {text_of(sent)}"


def text_of(sent: Sent) -> str:
    if sent.reply.streamed:
        deltas = [event["choices"][0]["delta"] for event in sent.reply.events() if event.get("choices")]
        return "".join(delta.get("content") or "" for delta in deltas)
    return str(json.loads(sent.reply.body)["choices"][0]["message"]["content"])
