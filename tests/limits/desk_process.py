"""A server process's desk without the server, for test_processes: routes, claims, admits and settles by plan.

One line of JSON in: the plan. Out: `ready`, and after `go` the report. `python -m tests.limits.desk_process`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
from datetime import datetime
from typing import Any

import django
from django.conf import settings

USAGE = {"input": 10, "output": 20}
TOKENS = USAGE["input"] + USAGE["output"]


class Ears(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


def facts(key: str) -> Any:
    from gateway.catalogue.snapshot import load_catalogue
    from gateway.limits.facts import load_model_rules, load_rules
    from tenants.facts import load_callers

    # As the snapshots do: versions before what they stand for, so that what is too new is only stale.
    catalogue, caller = load_catalogue(), load_callers([key])[key]
    return catalogue, caller, load_rules(caller.tenant_id, caller.key_id) + load_model_rules()


class Lane:
    """One client: the next request when the last one has ended."""

    def __init__(self, desk: Any, key: str, plan: dict[str, Any], counts: dict[str, int]) -> None:
        self.desk, self.key, self.plan, self.counts = desk, key, plan, counts
        self.facts: Any = None
        self.states: list[dict[str, Any]] = []  # of the last refusal

    async def run(self) -> None:
        refused = 0
        for _ in range(self.plan["requests"]):
            order = await self.admit()
            refused = 0 if order else refused + 1
            if order is None:
                if refused >= self.plan["patience"]:
                    return
                await asyncio.sleep(random.uniform(0.005, 0.03))
                continue
            if self.plan.get("linger"):
                print("holding", flush=True)
                await asyncio.sleep(3600)
            await asyncio.sleep(random.uniform(0, 0.03))
            if self.plan.get("moves_to"):
                await self.move(order)
            await self.settle(order)

    async def admit(self) -> Any:
        from asgiref.sync import sync_to_async

        from gateway.identifiers import uuid7
        from gateway.ledger.items import Gate
        from gateway.routing import choose_route

        now: datetime | None = None
        body = {"messages": [{"role": "user", "content": "Hello there"}], "max_tokens": self.plan["cap"]}
        for _ in range(30):
            self.facts = self.facts or await sync_to_async(facts)(self.key)
            catalogue, caller, rules = self.facts
            route = choose_route(
                catalogue, caller, request_id=uuid7(), endpoint="chat.completions", name="acme-chat", body=body,
                stream=False, include_usage=False, rules=rules, now=now,
            )  # fmt: skip
            route.order.candidates = [Gate(*gate) for gate in self.plan.get("gates", ())]
            verdict, detail = await self.desk.admit(route.order)
            self.counts[verdict] = self.counts.get(verdict, 0) + 1
            if verdict == "ok":
                return route.order
            if verdict == "limited":
                self.states = detail
                return None
            if verdict == "full":
                return None
            if verdict == "window":
                now = datetime.fromisoformat(detail)
            elif verdict == "stale":
                self.facts = None
            else:
                raise AssertionError(verdict)
        raise AssertionError("stale for ever")

    async def move(self, order: Any) -> None:
        from gateway.ledger.items import Gate

        moved = await self.desk.move(order, [Gate(*gate) for gate in self.plan["moves_to"]])
        self.counts["moved" if moved else "stuck"] = self.counts.get("moved" if moved else "stuck", 0) + 1
        await asyncio.sleep(random.uniform(0, 0.02))

    async def settle(self, order: Any) -> None:
        from gateway.ledger.items import Ending
        from gateway.upstreams.base import Usage

        usage = Usage(input_tokens=USAGE["input"], output_tokens=USAGE["output"])
        await self.desk.settle(order, Ending("completed", usage))
        self.counts["settled"] = self.counts.get("settled", 0) + 1
        if self.counts["settled"] % 3 == 0:
            print("settled", flush=True)


def cut_now_and_then(link: Any, every: int) -> None:
    """The connection goes away after the commit, before the answer."""
    from gateway.ledger.link import LinkLost

    call, calls = link.call, iter(range(10**9))

    def cut(items: Any, **how: Any) -> Any:
        rows = call(items, **how)
        if not how["retry"] and next(calls) % every == every - 1:
            raise LinkLost("cut after the commit")
        return rows

    link.call = cut


def be_hot(heat: Any) -> None:
    """As if we had waited long for every counter."""
    heat._until = {(0, 0): float("inf")}
    heat._hot = lambda subject, now=None: True


def spread_everything(heat: Any) -> None:
    """As if whatever this process wants were busy: it gets rows of its own from the first request on."""

    class Everything(dict[tuple[int, int], float]):
        def get(self, *_: Any) -> float:
            return float("inf")

    heat._until = Everything({(0, 0): 0.0})


async def work(desk: Any, plan: dict[str, Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    lanes = [Lane(desk, key, plan, counts) for key in plan["keys"] for _ in range(plan["lanes"])]
    await asyncio.gather(*(lane.run() for lane in lanes))
    return counts


def main() -> None:
    plan = json.loads(sys.stdin.readline())
    settings.DATABASES["default"].update(plan["database"])
    django.setup()
    from gateway.ledger import desk as desks
    from gateway.ledger import link, writer
    from gateway.ledger.desk import Desk

    # Longer than the database takes to find a deadlock: a time-out must not hide one. Nor is a machine that stands
    # still for some seconds what the tests are about.
    link._SESSION = link._SESSION.replace("lock_timeout = '100ms'", "lock_timeout = '30s'")
    link._SESSION = link._SESSION.replace(f"'{link.STATEMENT_TIMEOUT_MS}ms'", "'60s'")
    desks.ADMISSION_SECONDS = writer.STUCK_SECONDS = 60.0
    ears = Ears()
    logging.getLogger("gateway.ledger").addHandler(ears)
    desk = Desk()
    if plan.get("cut_every"):
        cut_now_and_then(desk.writer.link, plan["cut_every"])
    if plan.get("hot"):
        be_hot(desk.writer.heat)
    if plan.get("shards"):
        spread_everything(desk.writer.heat)
    print("ready", flush=True)
    sys.stdin.readline()
    counts = asyncio.run(work(desk, plan))
    left = desk.stop(60)
    print(json.dumps({"counts": counts, "left": left, "heard": ears.heard}), flush=True)


if __name__ == "__main__":
    main()
