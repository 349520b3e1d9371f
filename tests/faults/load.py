"""Clients that ask for everything that can go well or wrong, one serial number each, and remember what they got.

The number is in the request's `user` and X-Client-Request-Id.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.faults import limits
from tests.faults.wire import Goodbye, Reply, Wire

CAP = 60  # more than any model here says
PROMPT = "Count for me please"
# A model of the catalogue is a script of the provider's (tests/upstream_scripts.py): {id: how often}.
MODELS = {
    "words-12": 30,
    "words-40-every-5": 16,
    "words-25-every-30": 8,
    "slow-120": 8,
    "merged-9-every-2": 5,
    "unmetered-9-every-5": 5,
    "cut-4-every-5": 8,
    "fault-3-every-5": 6,
    "stall-3": 5,
    "error-500": 3,
    "error-429": 2,
    "drop": 3,
    "html-502": 1,
    "words-50-every-120": 0,  # asked for by name alone: what is in flight during a deploy
}
WHOLE = ("words", "slow", "merged")
IMPATIENT = ("stall-3",)  # models of a provider with a short time-out
PRICE = '[{effective_from: 2026-01-01, currency: USD, input: "1", output: "2"}]'  # 1000 and 2000 nano-dollars each


def catalogue(url: str, *, keys: bool = False) -> str:
    """With keys: those of tenant tight have been issued, and get limits of their own."""
    lines = [
        "providers:",
        f'  - {{name: scripted, protocol: openai, base_url: "{url}", credential: $FAULTS_PROVIDER_KEY}}',
        f'  - {{name: impatient, protocol: openai, base_url: "{url}", read_timeout_s: 1}}',
        "models:",
    ]
    for name in MODELS:
        provider = "impatient" if name in IMPATIENT else "scripted"
        deployment = f"{{provider: {provider}, upstream_model: {name}}}"
        watched = f", limits: {limits.EVERYBODY}" if name == "words-12" else ""
        lines.append(f"  - {{id: {name}, deployments: [{deployment}], prices: {PRICE}{watched}}}")
    lines += [limits.PLAN, "tenants:"]
    for slug, rules in (("acme", limits.WIDE), ("tight", limits.TIGHT)):
        lines += [
            f"  - slug: {slug}",
            "    currency: USD",
            '    models: ["*"]',
            "    plan: basic",
            f"    limits: {rules}",
        ]
    if keys:
        lines += ["    keys:", f"      - {{name: budget, limits: [{limits.BUDGET}]}}"]
        lines += [f"      - {{name: expected, limits: [{limits.EXPECTED}]}}"]
    return "\n".join([*lines, ""])


@dataclass
class Sent:
    """One request of a client, and what became of it there."""

    number: int
    model: str
    stream: bool
    include_usage: bool
    goodbye: Goodbye
    reply: Reply = field(default_factory=Reply)
    ended_at: float = 0.0  # time.monotonic(): the client was through with it

    @property
    def marker(self) -> str:
        return f"r{self.number:06d}"

    @property
    def body(self) -> bytes:
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": CAP,
            "user": self.marker,
        }
        if self.stream:
            request["stream"] = True
            if self.include_usage:
                request["stream_options"] = {"include_usage": True}
        return json.dumps(request).encode()


class Load:
    """`workers` clients in a thread with a loop of its own, from `start` to `stop`."""

    def __init__(self, port: int, keys: Sequence[str], seed: int, *, workers: int, pause: float = 0.08) -> None:
        """Every client has one of the keys."""
        self.port, self.keys, self.pause = port, keys, pause
        self.sent: list[Sent] = []
        self.whole_only = False  # only models that answer whole, and nobody hangs up
        self._random = random.Random(seed)
        self._stopping = threading.Event()
        self._failed: BaseException | None = None
        self._workers = workers
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Wait until every client has what it gets."""
        self._stopping.set()
        self._thread.join(180)
        assert not self._thread.is_alive(), "clients are still waiting for an answer"
        if self._failed is not None:
            raise self._failed

    def ends(self) -> Counter[str]:
        return Counter("whole" if sent.reply.whole else sent.reply.end for sent in self.sent)

    def _run(self) -> None:
        try:
            asyncio.run(self._all())
        except BaseException as exc:
            self._failed = exc

    async def _all(self) -> None:
        # The second half keeps its connections: they are cut between two requests, too.
        half = self._workers // 2
        clients = (self._client(self.keys[n % len(self.keys)], keep=n >= half) for n in range(self._workers))
        await asyncio.gather(*clients)
        await asyncio.sleep(0.2)

    async def _client(self, key: str, *, keep: bool) -> None:
        wire = Wire(self.port, keep=keep)
        while not self._stopping.is_set():
            sent = self._next()
            self.sent.append(sent)
            headers = {
                "authorization": f"Bearer {key}",
                "content-type": "application/json",
                "x-client-request-id": sent.marker,
            }
            sent.reply = await wire.post(sent.body, headers, sent.goodbye)
            sent.ended_at = time.monotonic()
            pauses = {200: self._random.uniform(0, 2 * self.pause), 429: 0.4}
            await asyncio.sleep(pauses.get(sent.reply.status, 0.1))
        wire.hang_up()

    def _next(self) -> Sent:
        draw = self._random
        if self.whole_only:
            model = draw.choice([name for name in MODELS if MODELS[name] and name.startswith(WHOLE)])
            return Sent(len(self.sent), model, draw.random() < 0.6, draw.random() < 0.5, Goodbye())
        model = draw.choices(list(MODELS), list(MODELS.values()))[0]
        return Sent(len(self.sent), model, draw.random() < 0.6, draw.random() < 0.5, self._goodbye(model))

    def _goodbye(self, model: str) -> Goodbye:
        draw = self._random
        reset = draw.random() < 0.5
        chance = draw.random()
        if chance < 0.03:
            return Goodbye(after_sent=draw.randrange(700), reset=reset)
        if chance < 0.15:
            return Goodbye(after_received=draw.randrange(1, 4000), reset=reset)
        if chance < 0.20:
            return Goodbye(after_seconds=draw.uniform(0.01, 0.6), reset=reset)
        return Goodbye()
