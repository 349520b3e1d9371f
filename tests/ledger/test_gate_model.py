"""Gates against a slow model that is obviously right: batches of admissions, further attempts and endings, from two
processes, sent once or twice, at times of our choosing. MODEL_EXAMPLES asks for more of them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.ledger.items import Ending, Gate, Item, Order
from gateway.ledger.models import Gate as Row
from gateway.ledger.models import Hold, Process
from gateway.upstreams.base import Usage
from tests.limits.clock import Clock, clock  # noqa: F401
from tests.limits.test_model import NOON, Shop, open_shop

MINUTE = 61  # seconds: the second of now, and the sixty before it
EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "15"))
FREE = Gate(999_003, 3)

numbers = st.integers(0, 12)
tokens = st.integers(0, 40)
which = st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True)  # gates, best first; 2: not limited
gates = st.tuples(st.sampled_from([0, 1, 3, 5]), st.sampled_from([0, 30, 90]), st.sampled_from([0, 1, 2, 4]))
admissions = st.tuples(st.just("admit"), which, tokens, tokens)
moves = st.tuples(st.just("move"), which, numbers, numbers)
endings = st.tuples(st.sampled_from(["settle", "fail", "release"]), numbers, tokens, tokens)
batches = st.tuples(
    st.just("batch"), st.booleans(), st.lists(admissions | admissions | moves | endings, min_size=1, max_size=6)
)
waits = st.tuples(st.just("wait"), st.floats(0.1, 70), st.just([]))
deaths = st.tuples(st.just("die"), st.just(0), st.just([]))


@dataclass
class Visit:
    gate: int
    second: int
    tokens: int
    counted: bool  # in tokens, too


@dataclass
class Request:
    order: Order
    ask: int
    at: Visit | None = None  # where it runs, if that is limited
    running: bool = True


@dataclass
class SlowModel:
    """A list of visits, added up anew for every question."""

    visits: list[Visit] = field(default_factory=list)
    requests: dict[UUID, Request] = field(default_factory=dict)

    def recent(self, gate: int, second: int) -> list[Visit]:
        return [v for v in self.visits if v.gate == gate and v.second > second - MINUTE]

    def running(self, gate: int) -> int:
        return sum(r.running and r.at is not None and r.at.gate == gate for r in self.requests.values())

    def fits(self, gate: Gate, ask: int, second: int) -> bool:
        recent = self.recent(gate.deployment, second)
        return (
            (not gate.rpm or len(recent) < gate.rpm)
            and (not gate.tpm or sum(v.tokens for v in recent) + ask <= gate.tpm)
            and (not gate.in_flight or self.running(gate.deployment) < gate.in_flight)
        )

    def wait(self, candidates: list[Gate], ask: int, second: int) -> int | None:
        """Seconds from the beginning of this one until one of them fits, if nobody ends or comes."""
        return next((n for n in range(MINUTE + 1) if any(self.fits(g, ask, second + n) for g in candidates)), None)

    def enter(self, request: Request, candidates: list[Gate], second: int) -> Gate | None:
        chosen = next((gate for gate in candidates if self.fits(gate, request.ask, second)), None)
        if chosen is not None and any(chosen[2:]):
            request.at = Visit(chosen.deployment, second, request.ask if chosen.tpm else 0, bool(chosen.tpm))
            self.visits.append(request.at)
        elif chosen is not None:
            request.at = None
        return chosen

    def move(self, request: Request, candidates: list[Gate], second: int) -> Gate | None:
        if not request.running:  # swept
            return None
        left, request.at = request.at, None
        used = left.tokens if left else 0
        if left:
            left.tokens = 0
        chosen = self.enter(request, candidates, second)
        if chosen is None and left:
            request.at, left.tokens = left, used
        return chosen

    def end(self, request: Request, used: int | None) -> None:
        """used: None if it was given up before anything was sent."""
        if request.running and request.at and used is None:
            self.visits.remove(request.at)
        elif request.running and request.at and request.at.counted:
            request.at.tokens = used or 0
        request.running = False


class Run:
    """One example, step by step, in the database and in the model."""

    def __init__(self, shop: Shop, limits: list[tuple[int, int, int]], clock: Clock) -> None:  # noqa: F811
        self.shop, self.clock, self.now = shop, clock, NOON
        self.gates = [Gate(999_001 + n, n + 1, *limit) for n, limit in enumerate(limits)] + [FREE]
        self.model = SlowModel()
        self.process = uuid4()

    @property
    def second(self) -> int:
        return int(self.now.timestamp())

    def batch(self, twice: bool, ops: list[Any]) -> None:
        fresh: dict[UUID, Request] = {}
        items: list[tuple[Item, list[Gate], Any]] = []
        busy: set[UUID] = set()  # one thing at a time
        for op, *facts in ops:
            if op == "admit":
                order = self.shop.order(0, (facts[1], facts[2]), self.now)
                order.candidates = [self.gates[n] for n in facts[0]]
                fresh[order.request_id] = Request(order, facts[1] + facts[2])
                items.append((order.admission(), order.candidates, None))
                continue
            number = facts[1] if op == "move" else facts[0]
            alive = [r for r in self.model.requests.values() if r.order.request_id not in busy and r.order.started_at]
            if not alive:
                continue
            request = alive[number % len(alive)]
            busy.add(request.order.request_id)
            if op == "move":
                candidates = [self.gates[n] for n in facts[0]]
                items.append((request.order.move(candidates), candidates, None))
            else:
                items.append(self._ending(request, op, facts[1], facts[2]))
        once = self._send([item for item, _, _ in items], retry=False)
        full = self._compare(items, fresh, once)
        if twice:  # as a batch whose outcome is not known: who was full asks anew, all else has been done
            again = self._send([item for item, _, _ in items], retry=True)
            for item, *_ in items:
                first, second = once[item["request_id"]], again[item["request_id"]]
                assert first[1] in ("full", "swept") or (first[1], first[-2:]) == (second[1], second[-2:])
            self._compare(full, fresh, again)

    def _ending(self, request: Request, op: str, *units: int) -> tuple[Item, list[Gate], Any]:
        request.order.started_at, order = None, request.order
        if op == "release":
            return order.release(), [], None
        usage = Usage(units[0], output_tokens=units[1]) if op == "settle" else Usage()
        order.started_at = self.now.isoformat()
        item = order.settlement(Ending("completed" if op == "settle" else "failed", usage))
        order.started_at = None
        return item, [], usage.total

    def _send(self, items: list[Item], *, retry: bool) -> dict[str, Any]:
        with connection.cursor() as cursor:
            cursor.execute(
                "SET enable_hashjoin = off; SET enable_mergejoin = off"
            )  # first come, first served: as the link
            sent = str(self.process), json.dumps(items, default=str), retry
            cursor.execute("SELECT ledger_desk(%s, %s, false, %s)", sent)
            return {row[0]: row for row in cursor.fetchone()[0] or []}

    def _compare(self, items: list[Any], fresh: dict[UUID, Request], answers: dict[str, Any]) -> list[Any]:
        """Who moves goes first, then who comes; what ends makes room for the next batch. Returns who found none."""
        rank, full = {"m": 0, "a": 1}, []
        for item, candidates, used in sorted(items, key=lambda one: rank.get(one[0]["op"], 2)):
            answer, request_id = answers[item["request_id"]], UUID(item["request_id"])
            if item["op"] in ("s", "r"):
                self.model.end(self.model.requests[request_id], used)
                continue
            request = fresh.get(request_id) or self.model.requests[request_id]
            enter = self.model.move if item["op"] == "m" else self.model.enter
            chosen = enter(request, candidates, self.second)
            if chosen is None:
                self._refused(request, candidates, answer, moved=item["op"] == "m")
                full.append((item, candidates, used))
                continue
            assert answer[1] == "ok" and answer[-2:] == list(chosen[:2])
            if item["op"] == "a":
                request.order.started_at, request.order.local_date = answer[2], answer[3]
                self.model.requests[request_id] = request
        return full

    def _refused(self, request: Request, candidates: list[Gate], answer: Any, *, moved: bool) -> None:
        assert answer[1] == "full"
        if moved:  # where it is now it leaves, so the model would have to ask as if it had
            return
        wait = self.model.wait(candidates, request.ask, self.second)
        left = None if wait is None else datetime.fromtimestamp(self.second + wait, UTC) - self.now
        assert answer[2] == (None if left is None else -(-left // timedelta(milliseconds=1)))

    def die(self, *_: Any) -> None:
        """Its holds are taken: nothing of them runs, and their estimates stay for their minute."""
        Process.objects.create(
            id=self.process, started_at=NOON, heartbeat_at=NOON, ended_at=NOON, kind="server", pid=0
        )
        with connection.cursor() as cursor:
            cursor.execute("SELECT ledger_sweep(%s, 500)", [self.process])
        for request in self.model.requests.values():
            request.running = False
        self.process = uuid4()

    def wait(self, seconds: float, _: Any) -> None:
        self.now += timedelta(milliseconds=round(seconds * 1000))
        self.clock.freeze(self.now)

    def check(self) -> None:
        for row in Row.objects.all():
            recent = self.model.recent(row.pk, self.second)
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT ledger_slots_live(g.requests, g.slot_at, g.requests_live, %(at)s),"
                    " ledger_slots_live(g.tokens, g.slot_at, g.tokens_live, %(at)s)"
                    " FROM ledger_gate g WHERE g.deployment_id = %(id)s",
                    {"at": self.second, "id": row.pk},
                )
                assert cursor.fetchone() == (len(recent), sum(v.tokens for v in recent))
        assert Hold.objects.count() == sum(r.running for r in self.model.requests.values())


@pytest.mark.django_db(transaction=True)
@settings(  # no shrinking: an example takes its time, and says all by itself
    deadline=None,
    max_examples=EXAMPLES,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(gates, min_size=2, max_size=2),
    st.lists(batches | batches | batches | waits | deaths, min_size=6, max_size=24),
)
def test_gates_decide_as_the_slow_model_does(
    clock: Clock,  # noqa: F811
    limits: list[tuple[int, int, int]],
    steps: list[tuple[str, Any, Any]],
) -> None:
    clock.freeze(NOON)
    Row.objects.all().delete()
    Hold.objects.all().delete()
    run = Run(open_shop([]), limits, clock)
    for name, first, second in steps:
        getattr(run, name)(first, second)
        run.check()
