"""Explaining decisions, and asking beforehand: the numbers of the moment, and nothing written by asking."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.identifiers import parse_request_id, uuid7
from gateway.ledger.desk import Desk
from gateway.ledger.explanation import as_json, explain
from gateway.ledger.items import Ending, Order
from gateway.ledger.models import Hold, UsageRecord
from gateway.ledger.simulator import Simulation, simulate
from gateway.limits.models import Credit, LimitCounter, LimitRule
from gateway.limits.refusals_log import Refusal
from gateway.upstreams.base import Usage
from tenants.models import APIKey
from tests.limits.conftest import limited, rule
from tests.limits.test_decisions import db

__all__ = ["limited", "rule"]

MakeOrder = Callable[..., Order]
MakeRule = Callable[..., LimitRule]
WHOLE = Ending("completed", Usage(input_tokens=10, output_tokens=5))


async def test_it_explains_a_refusal_limit_by_limit(
    desk: Desk, limited: MakeOrder, rule: MakeRule, acme: APIKey
) -> None:
    await db(lambda: rule(metric="tokens", per="day", amount=50))
    await db(lambda: rule(key=acme, metric="spend", per="month", currency="USD", amount=10**9))
    first, second = await db(lambda: [limited(), limited()])
    await desk.admit(first)
    await desk.admit(second)
    told = await db(lambda: explain(second.request_id))
    assert told is not None
    assert (told.source, told.verdict, told.key, told.tenant) == ("refusal", "refused", acme, acme.tenant)
    assert told.sentence == "Refused: it did not fit into tokens per day of acme."
    tokens, spend = told.steps
    assert (tokens.amount, tokens.used, tokens.held, tokens.asked, tokens.verdict) == (
        "50",
        "0",
        "30",
        "30",
        "refused",
    )
    assert tokens.sentence == "It asked for 30: it does not fit, 10 short."
    assert tokens.window.endswith("00:00 Asia/Tokyo")
    assert (spend.amount, spend.held, spend.verdict) == ("1.00 USD", "0.000013503 USD", "fits")


async def test_it_explains_what_runs_and_what_has_ended(desk: Desk, limited: MakeOrder, rule: MakeRule) -> None:
    await db(lambda: rule(metric="tokens", per="minute", amount=100))
    mine = await db(limited)
    await desk.admit(mine)
    running = await db(lambda: explain(mine.request_id))
    assert running is not None and (running.source, running.status) == ("hold", "running")
    await desk.settle(mine, WHOLE)
    ended = await db(lambda: explain(mine.request_id))
    assert ended is not None and (ended.source, ended.verdict, ended.status) == ("record", "admitted", "completed")
    assert ended.steps[0].decision == running.steps[0].decision
    assert ended.sentence == "Admitted: 1 limit looked at."
    assert ended.steps[0].window == "any 60 seconds"


async def test_it_explains_a_lowered_request_both_ways(desk: Desk, limited: MakeOrder, rule: MakeRule) -> None:
    await db(lambda: rule(metric="tokens", per="day", amount=25, hold="hard", on_shortage="fit"))
    mine = await db(limited)
    await desk.admit(mine)
    smaller = await db(lambda: limited(tokens=(10, 15)))
    smaller.request_id, smaller.lowered = mine.request_id, 15
    await desk.admit(smaller)
    told = await db(lambda: explain(mine.request_id))
    assert told is not None and (told.verdict, told.lowered_to) == ("lowered", 15)
    assert (told.first_steps[0].asked, told.steps[0].asked) == ("30", "25")


async def test_a_removed_rule_is_still_named(desk: Desk, limited: MakeOrder, rule: MakeRule) -> None:
    mine = await db(lambda: rule(metric="requests", per="day", amount=0))
    refused = await db(limited)
    await desk.admit(refused)
    await db(mine.delete)
    told = await db(lambda: explain(refused.request_id))
    assert told is not None and told.steps[0].removed
    assert told.steps[0].kind == "requests per day"


async def test_a_tenant_sees_its_own_requests_alone(
    desk: Desk, limited: MakeOrder, rule: MakeRule, globex: APIKey, chat_model: Any
) -> None:
    await db(lambda: rule(model=chat_model, metric="requests", per="day", amount=1))
    first, second = await db(lambda: [limited(globex), limited()])
    await desk.admit(first)
    await desk.admit(second)
    assert await db(lambda: explain(second.request_id, tenant_id=globex.tenant_id)) is None
    mine = await db(lambda: explain(second.request_id, tenant_id=second.caller.tenant_id))
    assert mine is not None
    # What the neighbour used of a limit that both share is nobody's business.
    (step,) = as_json(mine)["limits"]
    assert (step["scope"], step["amount"], step["used"], step["held"]) == ("model", 1, None, None)
    assert (step["verdict"], step["explanation"]) == ("refused", "It asked for 1: it does not fit.")


def test_it_does_not_know_a_request_that_never_was(acme: APIKey) -> None:
    assert explain(uuid7()) is None


@pytest.mark.parametrize("form", ["{0}", "{0.hex}", "req_{0.hex}", "chatcmpl-{0.hex}", " {0} "])
def test_it_reads_every_form_of_an_id(form: str) -> None:
    wanted = uuid7()
    assert parse_request_id(form.format(wanted)) == wanted


def test_it_reads_nothing_else_as_an_id() -> None:
    assert [parse_request_id(text) for text in ("", "req_", "laptop", "req_" + "g" * 32)] == [None] * 4


# ---- the simulator ----


def asked(key: APIKey, tokens: tuple[int, int] = (10, 20), at: datetime | None = None, **more: Any) -> Simulation:
    now = datetime.now(UTC)
    fields = {"key": key, "model": "acme-chat", "at": at or now, "now": now, **more}
    return simulate(input_tokens=tokens[0], output_tokens=tokens[1], **fields)


async def test_it_answers_as_the_desk_then_decides_and_writes_nothing(
    desk: Desk, limited: MakeOrder, rule: MakeRule, acme: APIKey
) -> None:
    await db(lambda: rule(metric="tokens", per="day", amount=60))
    await db(lambda: rule(metric="tokens", per="minute", amount=60))
    await db(lambda: rule(metric="in_flight", per="", amount=2))
    for expected in (True, True, False):
        answer = await db(lambda: asked(acme))
        assert answer.allowed is expected
        before = await db(lambda: list(LimitCounter.objects.order_by("id").values()))
        assert await db(lambda: list(LimitCounter.objects.order_by("id").values())) == before
        assert ((await desk.admit(await db(limited)))[0] == "ok") is expected
    assert (await db(lambda: asked(acme, (0, 0)))).steps[2].verdict == "refused"


async def test_it_reads_the_ledger_for_a_window_without_a_counter(
    desk: Desk, limited: MakeOrder, rule: MakeRule, acme: APIKey
) -> None:
    done, running = await db(lambda: [limited(), limited()])
    await desk.admit(done)
    await desk.settle(done, WHOLE)
    await desk.admit(running)
    await db(lambda: rule(metric="tokens", per="day", amount=75))
    (step,) = (await db(lambda: asked(acme))).steps
    assert (step.used, step.held, step.verdict) == ("15", "30", "fits")
    assert await db(LimitCounter.objects.count) == 0


async def test_another_time_has_its_own_window(desk: Desk, limited: MakeOrder, rule: MakeRule, acme: APIKey) -> None:
    await db(lambda: rule(metric="tokens", per="day", amount=30))
    mine = await db(limited)
    await desk.admit(mine)
    await desk.settle(mine, Ending("completed", Usage(input_tokens=10, output_tokens=20)))
    assert not (await db(lambda: asked(acme))).allowed
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert (await db(lambda: asked(acme, at=tomorrow))).allowed
    earlier = mine.started_at and datetime.fromisoformat(mine.started_at) - timedelta(milliseconds=1)
    assert (await db(lambda: asked(acme, at=earlier))).allowed


async def test_it_knows_credit_fit_and_price(rule: MakeRule, acme: APIKey, chat_model: Any) -> None:
    prepaid = await db(lambda: rule(metric="spend", per="total", currency="USD", amount=0))
    now = datetime.now(UTC)
    assert not (await db(lambda: asked(acme))).allowed
    await db(lambda: Credit.objects.create(rule=prepaid, amount=10**9, expires_at=now + timedelta(days=2)))
    assert (await db(lambda: asked(acme))).allowed
    assert not (await db(lambda: asked(acme, at=now + timedelta(days=3)))).allowed
    await db(lambda: rule(metric="tokens", per="day", amount=25, hold="hard", on_shortage="fit", floor=1))
    lowered = await db(lambda: asked(acme))
    assert (lowered.allowed, lowered.lowered_to) == (True, 15)
    assert lowered.sentence == "Yes, with its completion lowered to 15 tokens."


async def test_it_says_what_stands_in_the_way_before_limits(acme: APIKey, chat_model: Any) -> None:
    assert (await db(lambda: asked(acme, model="other"))).sentence.startswith("No. The model other does not exist")
    assert (await db(lambda: asked(acme))).sentence == "Yes. No limit watches it."
    await db(lambda: APIKey.objects.update(status="revoked"))
    assert (await db(lambda: asked(acme))).sentence == "No. The key is revoked or will have expired."
    assert not await db(Hold.objects.exists) and not await db(UsageRecord.objects.exists)
    assert not await db(Refusal.objects.exists)


async def test_more_than_the_limit_is_admitted_by_a_guess_and_refused_by_a_hard_limit(
    desk: Desk, limited: MakeOrder, rule: MakeRule, acme: APIKey
) -> None:
    """As the desk decides: an expected hold alone never exceeds its limit (limits.claims)."""
    mine = await db(lambda: rule(metric="tokens", per="day", amount=100))
    told = await db(lambda: asked(acme, (10, 500)))
    assert (
        told.sentence == "Yes. But if it really uses so many tokens, it uses more than tokens per day of acme allows."
    )
    assert (told.steps[0].asked, told.steps[0].beyond) == ("100", 510)
    assert (await desk.admit(await db(lambda: limited(tokens=(10, 500)))))[0] == "ok"
    await db(lambda: LimitRule.objects.filter(pk=mine.pk).update(hold="hard", amount=500))
    told = await db(lambda: asked(acme, (10, 500)))
    assert (told.allowed, told.steps[0].decision.never) == (False, True)
