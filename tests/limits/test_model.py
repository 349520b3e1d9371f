"""The desk's SQL against a slow model that is obviously right: batches of anything, from processes with and without
counters of their own, at times of our choosing. MODEL_EXAMPLES asks for more of them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.catalogue.models import Deployment, Model, Price, Provider
from gateway.catalogue.snapshot import load_catalogue
from gateway.identifiers import uuid7
from gateway.ledger.comparison import compare_limits
from gateway.ledger.items import Ending, Order
from gateway.ledger.models import Process
from gateway.limits.claims import Need, applicable, claims_for
from gateway.limits.facts import load_model_rules, load_rules
from gateway.limits.models import LimitCounter, LimitRule
from gateway.upstreams.base import Usage
from tenants.facts import load_callers
from tenants.models import APIKey, Tenant
from tests.limits.clock import Clock, clock  # noqa: F401
from tests.limits.slow_model import Limit, Request, SlowModel

NOON = datetime(2027, 5, 5, 12, tzinfo=UTC)
SHARDS = (0, 0, 3, 5)  # of four processes; 0: the rows that all share
KINDS: list[dict[str, Any]] = [
    {"metric": "requests", "per": "minute"},
    {"metric": "requests", "per": "day"},
    {"metric": "tokens", "per": "minute"},
    {"metric": "tokens", "per": "minute", "tokens": "input"},
    {"metric": "tokens", "per": "day", "tokens": "output"},
    {"metric": "in_flight", "per": ""},
    {"metric": "spend", "per": "total", "currency": "USD"},
]
AMOUNTS = {"requests": (1, 12), "tokens": (20, 300), "in_flight": (1, 6), "spend": (20_000, 300_000)}
EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "15"))
numbers = count()

kinds = st.sampled_from(KINDS).flatmap(
    lambda kind: st.tuples(
        st.just(kind), st.sampled_from(["tenant", "key", "model"]), st.integers(*AMOUNTS[kind["metric"]])
    )
)
few = st.integers(0, 40)
admissions = st.tuples(st.just("admit"), st.sampled_from([0, 1, 2]), few, few)
endings = st.tuples(st.sampled_from(["settle", "fail", "release"]), st.integers(0, 30), few, few)
batches = st.tuples(
    st.just("batch"), st.integers(0, 3), st.lists(admissions | admissions | endings, min_size=2, max_size=7)
)
waits = st.tuples(st.just("wait"), st.floats(0.1, 70), st.just(None))
deaths = st.tuples(st.just("die"), st.integers(0, 3), st.just(None))


@dataclass
class Shop:
    """The database of one example: two tenants, three keys, a model, and limits."""

    keys: list[APIKey]
    model: Model
    rules: list[LimitRule]

    def __post_init__(self) -> None:
        self.catalogue = load_catalogue()
        callers = load_callers([key.public_id for key in self.keys])
        self.callers = [callers[key.public_id] for key in self.keys]
        self.watching = [load_rules(c.tenant_id, c.key_id) + load_model_rules() for c in self.callers]

    def order(self, key: int, tokens: tuple[int, int], now: datetime) -> Order:
        facts, caller = self.catalogue.by_name[self.model.public_id], self.callers[key]
        target, rates = facts.deployments[0].target, facts.charge_rates(caller.tenant_id, "USD", now)
        assert target is not None
        rules = applicable(self.watching[key], facts.id, caller.currency)
        claims = claims_for(rules, need=Need(*tokens, *tokens), rates=rates, zone=caller.zone, now=now)
        return Order(
            uuid7(), caller, self.catalogue.version, "chat.completions", False, facts.public_id, facts.id,
            target.deployment_id, target.provider_id, *tokens, charge_rates=rates, cost_rates=None, claims=claims,
        )  # fmt: skip


def open_shop(wanted: list[tuple[dict[str, Any], str, int]]) -> Shop:
    number = next(numbers)
    provider = Provider.objects.create(name=f"echo-{number}", protocol="echo")
    model = Model.objects.create(public_id=f"model-{number}")
    Deployment.objects.create(model=model, provider=provider, upstream_model="echo")
    Price.objects.create(
        model=model, currency="USD", input=10**9, output=2 * 10**9, effective_from=NOON - timedelta(days=900)
    )
    tenants = [Tenant.objects.create(slug=f"{n}-{number}", name=n, allowed_models=["*"]) for n in ("acme", "globex")]
    keys = [APIKey.objects.create(public_id=uuid4().hex[:12], tenant=tenants[n // 2], name=str(n)) for n in range(3)]
    subjects = {"tenant": {"tenant": tenants[0]}, "key": {"key": keys[0]}, "model": {"model": model}}
    rules = []
    for kind, subject, amount in wanted:
        same = LimitRule.objects.filter(**subjects[subject], **kind)
        if not same.exists():
            rules.append(LimitRule.objects.create(**subjects[subject], **kind, amount=amount, hold="hard"))
    return Shop(keys, model, rules)


class Run:
    """One example, step by step, in the database and in the model."""

    def __init__(self, shop: Shop, clock: Clock) -> None:  # noqa: F811
        self.shop, self.clock, self.now = shop, clock, NOON
        self.model = SlowModel(
            [Limit(r.pk, r.metric, r.per, r.tokens, r.amount, r.key_id, r.tenant_id) for r in shop.rules]
        )
        self.orders: dict[UUID, tuple[Order, int]] = {}  # and its process
        self.processes = [uuid4() for _ in SHARDS]

    def batch(self, process: int, ops: list[Any]) -> None:
        fresh: dict[str, tuple[Order, dict[str, Any]]] = {}
        ended: dict[UUID, tuple[str, Usage, Any]] = {}
        for op, which, *tokens in ops:
            if op == "admit":
                order = self.shop.order(which, (tokens[0], tokens[1]), self.now)
                item = order.admission(SHARDS[process])
                item["claims"] = [[*claim, SHARDS[process]] for claim in order.claims]
                fresh[str(order.request_id)] = order, item
            elif unended := [one for one in self.orders if one not in ended]:
                usage = Usage(tokens[0], output_tokens=tokens[1]) if op == "settle" else Usage()
                ended[unended[which % len(unended)]] = op, usage, None
        endings = [self._ending(request_id, op, usage) for request_id, (op, usage, _) in ended.items()]
        self._write(process, fresh, endings)

    def _write(self, process: int, fresh: dict[str, tuple[Order, dict[str, Any]]], endings: list[Any]) -> None:
        """As the writer does: what a share did not do for comes again, with all rows locked."""
        items = [item for _, item in fresh.values()] + endings
        while items:
            with connection.cursor() as cursor:
                ours = str(self.processes[process]), json.dumps(items, default=str)
                cursor.execute("SELECT ledger_desk(%s, %s, false, false)", ours)
                answers = {row[0]: row for row in cursor.fetchone()[0]}
            for name, (order, item) in fresh.items():
                if name in answers and answers[name][1] != "again":
                    self._admitted(order, process, answers[name])
                item["whole"] = True
            for item in endings:
                self._ended(item)
            endings = []
            items = [fresh[name][1] for name, row in answers.items() if row[1] == "again"]

    def _admitted(self, order: Order, process: int, answer: Any) -> None:
        caller = order.caller
        second = int(self.now.timestamp())
        asked = {claim.rule: claim.ask for claim in order.claims}
        refusing = self.model.admit(Request(order.request_id, caller.tenant_id, caller.key_id, second, asked))
        assert answer[1] == ("limited" if refusing else "ok")
        if not refusing:
            order.started_at, order.local_date = answer[2], answer[3]
            self.orders[order.request_id] = order, process
        for state in answer[4] if refusing else ():
            assert state["fits"] == (state["rule"] not in refusing)
            if not state["fits"]:
                taken, wait = refusing[state["rule"]]
                assert state["taken"] == taken
                if wait is not None:
                    left = datetime.fromtimestamp(second + wait, UTC) - self.now
                    assert state["wait_ms"] == -(-left // timedelta(milliseconds=1))

    def _ending(self, request_id: UUID, op: str, usage: Usage) -> Any:
        order, _ = self.orders[request_id]
        if op == "release":
            return order.release()
        return order.settlement(Ending("completed" if op == "settle" else "failed", usage))

    def _ended(self, item: Any) -> None:
        request_id = UUID(str(item["request_id"]))
        request = self.model.requests[request_id]
        if item["op"] == "r" and request.state == "held":
            del self.model.requests[request_id]
        tokens = {side: item.get(f"{side}_tokens", 0) for side in ("input", "output")}
        request.used = {"requests": 1, "spend": item.get("charge") or 0, **tokens}
        request.state = "ended"
        del self.orders[request_id]

    def die(self, process: int, _: None) -> None:
        """Its holds are taken; what it settles after all comes as an adjustment."""
        mine = self.processes[process]
        Process.objects.create(id=mine, started_at=NOON, heartbeat_at=NOON, ended_at=NOON, kind="server", pid=0)
        with connection.cursor() as cursor:
            cursor.execute("SELECT ledger_sweep(%s, 500)", [mine])
        for request_id, (order, owner) in self.orders.items():
            request = self.model.requests[request_id]
            if owner == process and request.state == "held":
                request.state = "swept"
                request.used = {"requests": 1, "input": order.input_tokens, "output": order.output_tokens, "spend": 0}
        self.processes[process] = uuid4()

    def wait(self, seconds: float, _: None) -> None:
        self.now += timedelta(milliseconds=round(seconds * 1000))
        self.clock.freeze(self.now)

    def check(self) -> None:
        """Counters, ledger and model say the same, in whichever rows."""
        rows = LimitCounter.objects.filter(rule_id__in=[rule.pk for rule in self.shop.rules])
        second = int(self.now.timestamp())
        for state in compare_limits([row.pk for row in rows]):
            assert list(state.differences()) == []
            limit = next(limit for limit in self.model.limits if limit.id == state.rule)
            assert state.used + state.held == self.model.taken(limit, second)


@pytest.mark.django_db(transaction=True)
@settings(  # no shrinking: an example takes its time, and says all by itself
    deadline=None,
    max_examples=EXAMPLES,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(kinds, min_size=1, max_size=4),
    st.lists(batches | batches | batches | waits | deaths, min_size=6, max_size=18),
)
def test_the_desk_decides_as_the_slow_model_does(
    clock: Clock,  # noqa: F811
    wanted: list[tuple[dict[str, Any], str, int]],
    steps: list[tuple[str, Any, Any]],
) -> None:
    clock.freeze(NOON)
    run = Run(open_shop(wanted), clock)
    for name, first, second in steps:
        getattr(run, name)(first, second)
        run.check()
