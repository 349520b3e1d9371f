"""A server process's desk without the server: routes, admits and settles in a closed loop, and says what it cost.

Lines of JSON in: first the public ids of the keys by population, then the runs ({population, lanes, begin, end};
times of the monotonic clock, which all processes share). Out: one line of JSON for each. Ends with its input.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import django

from benchmarks.cast import MODEL

BODY = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": ("prompt " * 147)[:1024]},
    ],
    "temperature": 0.7,
    "max_tokens": 256,
}
INPUT_TOKENS, OUTPUT_TOKENS = 250, 60
ATTEMPTS = 30


@dataclass(slots=True)
class Client:
    """A key and the facts that the snapshots of a server would have of it."""

    public_id: str
    facts: Any = None


@dataclass(slots=True)
class Meter:
    """What is counted between the run's begin and end."""

    on: bool = False
    over: bool = False
    requests: int = 0
    routing_ns: int = 0
    admissions_us: list[int] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)


def load_facts(public_id: str) -> Any:
    from gateway.catalogue.snapshot import load_catalogue
    from gateway.limits.facts import load_model_rules, load_rules
    from tenants.facts import load_callers

    catalogue, caller = load_catalogue(), load_callers([public_id])[public_id]
    return catalogue, caller, load_rules(caller.tenant_id, caller.key_id) + load_model_rules()


def readings(desk: Any) -> dict[str, float]:
    """Seconds of CPU so far: of this process, and of the desk's thread; and what the thread has sent."""
    thread = time.clock_gettime(time.pthread_getcpuclockid(desk.writer.ident))
    return {
        "wall": time.monotonic(),
        "process": time.process_time(),
        "thread": thread,
        "batches": desk.writer.batches,
        "items": desk.writer.items,
    }


class Bench:
    def __init__(self, desk: Any, clients: dict[str, list[Client]], offset: int) -> None:
        self.desk = desk
        # Each process begins with another key.
        self.turns: dict[str, Iterator[Client]] = {
            name: itertools.cycle(found[offset % len(found) :] + found[: offset % len(found)])
            for name, found in clients.items()
        }

    async def run(self, *, population: str, lanes: int, begin: float, end: float) -> dict[str, Any]:
        loop, meter, ended = asyncio.get_running_loop(), Meter(), asyncio.Event()
        loop.call_at(begin, self._begin, meter)
        loop.call_at(end, self._end, meter)
        loop.call_at(end, ended.set)  # with no lanes it would be over before it begins
        turns = self.turns[population]
        await asyncio.gather(*(self._lane(turns, meter) for _ in range(lanes)))
        await ended.wait()
        spent = {name: meter.last[name] - meter.first[name] for name in meter.first}
        return {
            "requests": meter.requests,
            "routing": meter.routing_ns / 1e9,
            "admissions_us": meter.admissions_us,
            **spent,
        }

    def _begin(self, meter: Meter) -> None:
        meter.on, meter.first = True, readings(self.desk)

    def _end(self, meter: Meter) -> None:
        meter.on, meter.over, meter.last = False, True, readings(self.desk)

    async def _lane(self, turns: Iterator[Client], meter: Meter) -> None:
        from gateway.ledger.items import Ending
        from gateway.upstreams.base import Usage

        ending = Ending("completed", Usage(input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS))
        while not meter.over:
            order = await self._admit(next(turns), meter)
            await self.desk.settle(order, ending)
            meter.requests += meter.on

    async def _admit(self, client: Client, meter: Meter) -> Any:
        from gateway.identifiers import uuid7
        from gateway.routing import choose_route

        now: datetime | None = None
        for _ in range(ATTEMPTS):
            if client.facts is None:
                client.facts = await asyncio.to_thread(load_facts, client.public_id)
            catalogue, caller, rules = client.facts
            began = time.thread_time_ns()
            order = choose_route(
                catalogue, caller, request_id=uuid7(), endpoint="chat.completions", name=MODEL, body=BODY,
                stream=False, include_usage=False, rules=rules, now=now,
            ).order  # fmt: skip
            routed, asked = time.thread_time_ns(), time.perf_counter_ns()
            verdict, detail = await self.desk.admit(order)
            if meter.on:
                meter.routing_ns += routed - began
                meter.admissions_us.append((time.perf_counter_ns() - asked) // 1000)
            if verdict == "ok":
                return order
            if verdict == "window":
                now = datetime.fromisoformat(detail)
            elif verdict == "stale":
                client.facts = None
            else:
                raise RuntimeError(f"The desk says {verdict}: {detail}")
        raise RuntimeError("The facts are stale for ever.")


def tell(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    plan = json.loads(sys.stdin.readline())
    django.setup()
    from gateway.ledger.desk import Desk

    clients = {name: [Client(key, load_facts(key)) for key in keys] for name, keys in plan["keys"].items()}
    desk = Desk()
    bench = Bench(desk, clients, plan["offset"])
    tell("ready")
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            tell(runner.run(bench.run(**json.loads(line))))
    tell({"left": desk.stop(10)})


if __name__ == "__main__":
    main()
