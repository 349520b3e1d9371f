"""Counters with a row for each process, against a serial model that is obviously right.

Never above the amount, never refused what fits, and no drift: whatever is asked, settled, released, swept, raised or
made anew, in whichever rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.db.models import Max, Sum
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.ledger.comparison import compare_limits
from gateway.ledger.items import Item, Order
from gateway.ledger.verification import verify
from gateway.limits.claims import Claim, make_claim
from gateway.limits.facts import load_rules
from gateway.limits.models import LimitCounter, LimitRule
from tenants.facts import load_callers
from tenants.models import APIKey, Tenant
from tests.limits.clock import Clock, clock
from tests.limits.processes import LOCK_TIMEOUT_MS, Process, process, release, settlement

__all__ = ["clock", "process"]

MakeOrder = Callable[..., Order]
MakeRule = Callable[..., LimitRule]
Start = Callable[[int], Process]

slow = settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
PROCESSES = 3
asks = st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=4)
one_step = st.one_of(
    st.tuples(st.just("admit"), st.integers(0, PROCESSES), asks),
    st.tuples(st.just("admit"), st.integers(0, PROCESSES), asks),
    st.tuples(st.just("race"), st.lists(st.integers(0, PROCESSES), min_size=2, max_size=2, unique=True), asks),
    st.tuples(st.just("race"), st.lists(st.integers(0, PROCESSES), min_size=2, max_size=2, unique=True), asks),
    st.tuples(st.just("settle"), st.integers(0, 50), st.integers(0, 60)),
    st.tuples(st.just("settle"), st.integers(0, 50), st.integers(0, 60)),
    st.tuples(st.just("release"), st.integers(0, 50), st.none()),
    st.tuples(st.just("amount"), st.integers(0, 120), st.none()),
    st.tuples(st.just("forget"), st.none(), st.none()),
    st.tuples(st.just("sweep"), st.integers(0, PROCESSES), st.none()),
    st.tuples(st.just("wait"), st.integers(1, 90), st.none()),
)
steps = st.lists(one_step, min_size=5, max_size=30)


@dataclass
class Request:
    item: Item
    answer: list[Any]
    ask: int
    by: int  # which process holds it; -1: swept
    taken: int  # what the limit counts for it now

    @property
    def second(self) -> int:
        return int(datetime.fromisoformat(self.answer[2]).timestamp())


@dataclass
class Model:
    """One after the other, in one place. metric: spend, in_flight, tokens (of a minute)."""

    metric: str
    amount: int = 100
    running: list[Request] = field(default_factory=list)
    ended: list[Request] = field(default_factory=list)

    def taken(self, instant: str) -> int:
        requests = self.running + self.ended
        if self.metric == "tokens":
            at = int(datetime.fromisoformat(instant).timestamp())
            requests = [request for request in requests if request.second > at - 61]
        return sum(request.taken for request in requests)

    def real(self, used: int) -> int:
        return 0 if self.metric == "in_flight" else used

    def decided(self, answer: list[Any], ask: int) -> None:
        fits = self.taken(answer[2]) + ask <= self.amount
        assert answer[1] == ("ok" if fits else "limited"), (answer, self.taken(answer[2]), ask, self.amount)


class Scene:
    """A tenant of its own with one rule, three processes, and the model beside them."""

    def __init__(self, metric: str, order: Order, processes: list[Process], step: Callable[[int], None]) -> None:
        self.model, self.processes, self._step = Model(metric), processes, step
        self.order, self.rule = order, load_rules(order.caller.tenant_id, order.caller.key_id)[0]

    def claim(self, ask: int) -> Claim:
        made = make_claim(self.rule, self.order.caller.zone, within_a_month(), self.model.amount, ask)
        return made._replace(enforce=1)

    def admit(self, by: int, asked: list[tuple[int, bool]]) -> None:
        """A process; not all of its requests have heard already that the counter is busy."""
        batch = self._batch(by, asked)
        self._whole(by, self._hear(by, batch, self._call(by, batch)))

    def race(self, two: list[int], asked: list[tuple[int, bool]]) -> None:
        """The second decides while the first has not committed; if it has to wait for that, it comes later."""
        first, second = ((by, self._batch(by, asked)) for by in two)
        with self.processes[first[0]].open():
            answers = self._call(*first)
            try:
                self.processes[second[0]].run("SET lock_timeout = 20")
                others = self._call(*second)
            except psycopg.errors.LockNotAvailable:
                others = []
            self.processes[second[0]].run(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
        again = [(first[0], self._hear(*first, answers))]
        again.append((second[0], self._hear(*second, others or self._call(*second))))
        for by, batch in again:
            self._whole(by, batch)

    def _batch(self, by: int, asked: list[tuple[int, bool]]) -> list[tuple[Item, int]]:
        batch, process = [], self.processes[by]
        for ask, hot in asked:
            ask = 1 if self.model.metric == "in_flight" else ask
            self.order.input_tokens, self.order.output_tokens = ask, 0
            item = process.admission(self.order, self.claim(ask), shard=process.shard if hot else 0)
            batch.append((item | {"amount": ask}, ask))
        return batch

    def _call(self, by: int, batch: list[tuple[Item, int]]) -> list[list[Any]]:
        return self.processes[by].call(*(item for item, _ in batch))

    def _whole(self, by: int, again: list[tuple[Item, int]]) -> None:
        batch = [(item | {"whole": True}, ask) for item, ask in again]
        if batch:
            assert self._hear(by, batch, self._call(by, batch)) == []

    def _hear(self, by: int, batch: list[tuple[Item, int]], answers: list[list[Any]]) -> list[tuple[Item, int]]:
        again = []
        for (item, ask), answer in zip(batch, answers, strict=True):
            if answer[1] == "again":
                again.append((item, ask))
                continue
            self.model.decided(answer, ask)
            if answer[1] == "ok":
                self.model.running.append(Request(item, answer, ask, by, ask))
        return again

    def settle(self, which: int, used: int) -> None:
        if not self.model.running:
            return
        request = self.model.running.pop(which % len(self.model.running))
        answers = self.processes[request.by].call(settlement(request.item, request.answer, tokens=used, charge=used))
        assert answers[0][1] in ("ok", "swept")
        request.taken = self.model.real(used)
        self.model.ended.append(request)

    def release(self, which: int, _: None) -> None:
        if self.model.running:
            request = self.model.running.pop(which % len(self.model.running))
            self.processes[request.by].call(release(request.item))

    def amount(self, amount: int, _: None) -> None:
        self.model.amount = amount

    def forget(self, *_: None) -> None:
        """Its plan changed, or it was disabled for a while: counters are made anew, from the ledger."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT limits_forget(%s, NULL)", [self.rule.id])

    def sweep(self, which: int, _: None) -> None:
        """It was taken for dead. What it held becomes records of what was expected, charged nothing."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT ledger_sweep(%s, 1000)", [self.processes[which].id])
        for request in self.model.running:
            if request.by == which and request.item["op"] == "a":
                request.taken = request.ask if self.model.metric == "tokens" else 0

    def wait(self, seconds: int, _: None) -> None:
        self._step(seconds)

    def check(self) -> None:
        """Rows add up to what the ledger has, and shares to no more than the amount."""
        rows = LimitCounter.objects.filter(rule_id=self.rule.id)
        sums = rows.aggregate(used=Sum("used"), held=Sum("held"), share=Sum("share"), share_of=Max("share_of"))
        if self.model.metric != "tokens":
            held = sum(request.taken for request in self.model.running)
            used = sum(request.taken for request in self.model.ended)
            assert not rows or (sums["used"], sums["held"]) == (used, held)
            assert all(row.held >= 0 for row in rows)
        if sums["share"] is not None and sums["share_of"] is not None:
            assert sums["share"] <= sums["share_of"]
            assert {row.share_of for row in rows} <= {sums["share_of"], None}
        for state in compare_limits([row.pk for row in rows]):
            assert list(state.differences()) == []


def within_a_month() -> datetime:
    """Now, if the month does not end within a story's three quarters of an hour."""
    now, hours = datetime.now(UTC), timedelta(hours=1)
    return now if (now + 2 * hours).month == now.month else now + 3 * hours


def tenant_with(metric: str, number: int) -> APIKey:
    tenant = Tenant.objects.create(slug=f"{metric}-{number}".replace("_", "-"), name="One", allowed_models=["*"])
    key = APIKey.objects.create(public_id=f"{metric[:4]}{number:08}", tenant=tenant, name="key")
    fields: dict[str, Any] = {"spend": {"per": "month", "currency": "USD"}, "tokens": {"per": "minute"}}.get(
        metric, {}
    )
    LimitRule.objects.create(tenant=tenant, metric=metric, amount=10**9, **({"per": ""} | fields))
    return key


@pytest.mark.parametrize("metric", ["spend", "in_flight", "tokens"])
def test_rows_of_processes_decide_as_one_row_does(
    metric: str, clock: Clock, acme: APIKey, order: MakeOrder, process: Start
) -> None:
    processes = [process(shard) for shard in range(PROCESSES + 1)]  # the first has no number
    found = [0]
    plain = order()

    @slow
    @given(steps)
    def run(story: list[Any]) -> None:
        clock.set(within_a_month())
        found[0] += 1
        key = tenant_with(metric, found[0])
        plain.caller = load_callers([key.public_id])[key.public_id]
        scene = Scene(metric, plain, processes, lambda seconds: clock.step(seconds=seconds))
        for name, first, second in story:
            getattr(scene, name)(first, second)
        scene.check()
        while scene.model.running:
            scene.settle(0, 7)
        scene.check()

    run()
    assert verify().drift == []
