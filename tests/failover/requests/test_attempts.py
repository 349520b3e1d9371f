"""A request's way from provider to provider, over HTTP, with its books."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from gateway.catalogue.models import Deployment, Model, Provider
from gateway.failover.board import Board
from gateway.ledger.models import Attempt, UsageRecord
from tenants.models import APIKey
from tests.failover.requests.conftest import together
from tests.upstream import Upstream
from tests.upstream_scripts import Answer, Stream, drop, error, hang, html

Served = Callable[..., Model]


def asked(upstream: Upstream) -> list[str]:
    return [request.model for request in upstream.served]


async def books() -> tuple[UsageRecord, list[Attempt]]:
    """Of the one request. Nobody waits for the record of a refusal, so it may come a moment later."""
    async with asyncio.timeout(60):
        while not await UsageRecord.objects.aexists():
            await asyncio.sleep(0.01)
    record = await UsageRecord.objects.aget()
    return record, [attempt async for attempt in Attempt.objects.order_by("number")]


async def streamed(response: Any) -> tuple[str, BaseException | None]:
    parts, failure = [], None
    try:
        async for part in response.streaming_content:
            parts.append(part)
    except Exception as exc:
        failure = exc
    return b"".join(parts).decode(), failure


def texts(said: str) -> str:
    events = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event.get("choices", ()))


FAILURES = {
    "a 500": (error(500), "status_500"),
    "a 502 page": (html(502), "status_502"),
    "a 503": (error(503), "status_503"),
    "a 529": (error(529), "status_529"),
    "a 429": (error(429, headers={"retry-after": "30"}), "status_429"),
    "a 408": (error(408), "status_408"),
    "a 409": (error(409), "status_409"),
    "our credential": (error(401), "status_401"),
    "our name of the model": (error(404), "status_404"),
    "a reset": (drop, "broken"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failure", FAILURES)
async def test_another_deployment_answers(
    upstream: Upstream, served: Served, ask: Any, failure: str, stream: bool
) -> None:
    await sync_to_async(served)("acme-chat", "first", "second")
    script, outcome = FAILURES[failure]
    upstream.script("first", script)
    response = await ask(stream=stream)
    assert response.status_code == 200
    if stream:
        said, failed = await streamed(response)
        assert (texts(said), failed, said.endswith("data: [DONE]\n\n")) == ("Hello there.", None, True)
    assert asked(upstream) == ["first", "second"]
    record, attempts = await books()
    assert (record.status, record.served_model, record.http_status) == ("completed", "", 200)
    assert [(attempt.outcome, attempt.served) for attempt in attempts] == [(outcome, False), ("ok", True)]
    assert [attempt.deployment_id for attempt in attempts][1] == record.deployment_id
    assert attempts[0].deployment_id != record.deployment_id


async def test_nobody_listens_at_the_first(upstream: Upstream, served: Served, ask: Any, provider: Provider) -> None:
    gone = await Provider.objects.acreate(name="gone", base_url="http://127.0.0.1:9/v1")
    await sync_to_async(served)("acme-chat", {"provider": gone, "upstream_model": "x"}, "second")
    assert (await ask()).status_code == 200
    _, attempts = await books()
    assert [attempt.outcome for attempt in attempts] == ["connect", "ok"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_provider_that_hangs_is_given_up_before_its_first_byte(
    upstream: Upstream, served: Served, ask: Any, stream: bool
) -> None:
    await sync_to_async(served)("acme-chat", "first", "second", first_byte_timeout_s=1)
    upstream.script("first", hang)
    response = await ask(stream=stream)
    assert response.status_code == 200
    if stream:
        assert texts((await streamed(response))[0]) == "Hello there."
    _, attempts = await books()
    assert [attempt.outcome for attempt in attempts] == ["timeout", "ok"]


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_what_is_the_clients_own_fault_is_not_tried_again(
    upstream: Upstream, served: Served, ask: Any, status: int
) -> None:
    await sync_to_async(served)("acme-chat", "first", "second")
    upstream.script("first", error(status, "That is no temperature."))
    response = await ask()
    assert (response.status_code, response.json()["error"]["message"]) == (400, "That is no temperature.")
    assert asked(upstream) == ["first"]
    record, attempts = await books()
    assert (record.status, record.charge) == ("failed", 0)
    assert [attempt.outcome for attempt in attempts] == [f"status_{status}"]


async def test_a_stream_that_has_begun_is_never_continued_elsewhere(
    upstream: Upstream, served: Served, ask: Any
) -> None:
    await sync_to_async(served)("acme-chat", "first", "second")
    upstream.script("first", Stream(cut_after=2))
    said, failed = await streamed(await ask(stream=True))
    assert failed is not None
    assert '"error"' in said.splitlines()[-2]
    assert "[DONE]" not in said
    assert asked(upstream) == ["first"]
    record, attempts = await books()
    assert (record.status, record.estimated) == ("interrupted", True)
    assert record.output_tokens > 0
    assert [attempt.outcome for attempt in attempts] == ["cut"]


async def test_an_answer_that_has_begun_and_cannot_be_read_is_not_asked_for_again(
    upstream: Upstream, served: Served, ask: Any
) -> None:
    await sync_to_async(served)("acme-chat", "first", "second")
    upstream.script("first", html(200))
    assert (await ask()).status_code == 502
    assert asked(upstream) == ["first"]
    _, attempts = await books()
    assert [(attempt.outcome, attempt.http_status) for attempt in attempts] == [("cut", 200)]


async def test_a_limit_is_waited_for_where_there_is_nobody_else(upstream: Upstream, served: Served, ask: Any) -> None:
    await sync_to_async(served)("acme-chat", "only")
    upstream.queue(error(429, headers={"retry-after-ms": "40", "retry-after": "1"}))
    assert (await ask()).status_code == 200
    assert asked(upstream) == ["only", "only"]
    _, attempts = await books()
    assert [attempt.outcome for attempt in attempts] == ["status_429", "ok"]
    assert attempts[1].started_at - attempts[0].ended_at >= timedelta(milliseconds=40)


@pytest.mark.parametrize(("wait", "bound"), [("3", {"retry_within_s": 2}), ("6", {})])
async def test_a_limit_that_lasts_longer_than_there_is_time_is_passed_on(
    upstream: Upstream, served: Served, ask: Any, wait: str, bound: dict[str, int]
) -> None:
    await sync_to_async(served)("acme-chat", "only", **bound)
    upstream.script("only", error(429, headers={"retry-after": wait}))
    response = await ask()
    assert (response.status_code, response.headers["retry-after"]) == (429, wait)
    assert asked(upstream) == ["only"]


@pytest.mark.parametrize("most", [1, 2, 5])
async def test_attempts_have_an_end(upstream: Upstream, served: Served, ask: Any, most: int) -> None:
    await sync_to_async(served)("acme-chat", "first", "second", max_attempts=most)
    for name in ("first", "second"):
        upstream.script(name, error(500))
    response = await ask()
    assert response.status_code == 502
    assert len(asked(upstream)) == most
    record, attempts = await books()
    assert (record.status, record.charge, record.cost) == ("failed", 0, 0)
    assert len(attempts) == len(asked(upstream))


async def test_a_fallback_model_answers_under_its_own_name_and_price(
    upstream: Upstream, served: Served, ask: Any, key: APIKey
) -> None:
    await sync_to_async(served)("acme-small", "small", price=3 * 10**9, max_output_tokens=10)
    await sync_to_async(served)("acme-chat", "first", "second", fallbacks=["acme-small"])
    for name in ("first", "second"):
        upstream.script(name, error(500))
    response = await ask()
    said = response.json()
    assert (response.status_code, said["model"]) == (200, "acme-small")
    assert response.headers["x-counterfoil-served-model"] == "acme-small"
    assert asked(upstream) == ["first", "second", "small"]
    assert upstream.served[-1].body["max_tokens"] == 10  # what the fallback can say at most
    record, attempts = await books()
    assert (record.model, record.served_model, record.status) == ("acme-chat", "acme-small", "completed")
    assert record.charge == 3000 * (record.input_tokens + record.output_tokens)
    assert [attempt.model for attempt in attempts] == ["acme-chat", "acme-chat", "acme-small"]


async def test_a_fallback_that_the_key_may_not_call_is_left_out(upstream: Upstream, served: Served, ask: Any) -> None:
    await sync_to_async(served)("globex-chat", "theirs")
    await sync_to_async(served)("acme-chat", "first", fallbacks=["globex-chat"], max_attempts=2)
    upstream.script("first", error(500))
    assert (await ask()).status_code == 502
    assert set(asked(upstream)) == {"first"}


async def test_a_dead_deployment_is_out_of_the_way_after_five_failures(
    upstream: Upstream, served: Served, ask: Any, nothing_known: Board
) -> None:
    await sync_to_async(served)("acme-chat", "first", "second")
    upstream.script("first", error(500))
    for _ in range(12):
        assert (await ask()).status_code == 200
    assert Counter(asked(upstream)) == {"first": 5, "second": 12}


async def test_a_deployment_whose_streams_all_break_is_taken_out(
    upstream: Upstream, served: Served, ask: Any
) -> None:
    await sync_to_async(served)("acme-chat", "first", "second")
    upstream.script("first", Stream(cut_after=2))
    failures = [(await streamed(await ask(stream=True)))[1] for _ in range(7)]
    assert [failure is None for failure in failures] == [False] * 5 + [True] * 2


async def test_a_model_whose_providers_all_fail_says_so_at_once(upstream: Upstream, served: Served, ask: Any) -> None:
    await sync_to_async(served)("acme-chat", "only", max_attempts=1)
    upstream.script("only", error(500))
    statuses = [(await ask()).status_code for _ in range(7)]
    assert statuses == [502] * 5 + [503] * 2
    response = await ask()
    assert 1 <= int(response.headers["retry-after"]) <= 41
    assert len(asked(upstream)) == 5
    async with asyncio.timeout(60):  # nobody waits for the record of a failure
        while await UsageRecord.objects.acount() < 5:
            await asyncio.sleep(0.01)
    assert await UsageRecord.objects.acount() == 5  # a refusal before the provider leaves no record


async def test_one_request_is_one_witness_however_often_it_tries(
    upstream: Upstream, served: Served, ask: Any
) -> None:
    await sync_to_async(served)("acme-chat", "only", max_attempts=2)
    upstream.script("only", error(500))
    assert [(await ask()).status_code for _ in range(5)] == [502] * 5
    assert len(asked(upstream)) == 9  # the fifth has opened the breaker, and so is not tried again
    assert (await ask()).status_code == 503


async def test_a_deployment_that_fails_often_gets_no_second_tries(
    upstream: Upstream, served: Served, ask: Any, process_loads: Any
) -> None:
    model = await sync_to_async(served)("acme-chat", "only")
    deployment = await model.deployments.aget()
    for _ in range(25):
        process_loads[deployment.pk].failed()
    upstream.script("only", error(500))
    assert (await ask()).status_code == 502
    assert asked(upstream) == ["only"]


async def test_the_same_conversation_stays_where_it_was(upstream: Upstream, served: Served, ask: Any) -> None:
    same = [{"upstream_model": name, "priority": 0} for name in ("one", "two", "three")]
    await sync_to_async(served)("acme-chat", *same, sticky=True)
    for conversation in ("a", "b", "c", "d"):
        for _ in range(3):
            await ask(prompt_cache_key=conversation)
    places = [asked(upstream)[start : start + 3] for start in range(0, 12, 3)]
    assert all(len(set(place)) == 1 for place in places)
    assert len({place[0] for place in places}) > 1


async def test_the_cheapest_deployment_is_asked_first(
    upstream: Upstream, served: Served, ask: Any, provider: Provider
) -> None:
    cheap = await Provider.objects.acreate(name="cheap", base_url=upstream.url)
    model = await sync_to_async(served)(
        "acme-chat",
        {"upstream_model": "dear", "priority": 0},
        {"upstream_model": "cheap", "priority": 0, "provider": cheap},
        strategy="lowest_cost",
    )
    for owner, price in ((provider, 9 * 10**9), (cheap, 10**9)):
        await model.prices.acreate(
            side="cost", provider=owner, currency="USD", input=price, output=price, effective_from="2026-01-01T00:00Z"
        )
    for _ in range(6):
        await ask()
    assert set(asked(upstream)) == {"cheap"}


async def test_those_who_come_at_once_are_spread(upstream: Upstream, served: Served, ask: Any) -> None:
    same = [{"upstream_model": name, "priority": 0, "weight": weight} for name, weight in (("one", 1), ("two", 2))]
    await sync_to_async(served)("acme-chat", *same, strategy="least_busy")
    for name in ("one", "two"):
        upstream.script(name, together(upstream, 12))
    await asyncio.gather(*(ask() for _ in range(12)))
    counts = Counter(asked(upstream))
    assert (3 <= counts["one"] <= 5) and counts.total() == 12


async def test_a_disabled_deployment_is_not_asked(upstream: Upstream, served: Served, ask: Any) -> None:
    await sync_to_async(served)("acme-chat", "first", "second")
    await Deployment.objects.filter(upstream_model="first").aupdate(enabled=False)
    upstream.script("second", Answer("From the second."))
    assert (await ask()).json()["choices"][0]["message"]["content"] == "From the second."
    assert asked(upstream) == ["second"]


async def test_a_client_that_leaves_before_the_first_byte_pays_for_its_prompt(
    upstream: Upstream, served: Served, ask: Any
) -> None:
    await sync_to_async(served)("acme-chat", "hang")
    task = asyncio.create_task(ask())
    async with asyncio.timeout(60):
        while not upstream.served:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    record, (attempt,) = await books()
    assert (record.status, attempt.outcome) == ("interrupted", "client_left")
    assert record.estimated
    assert record.input_tokens > 0
    assert record.output_tokens == 0


async def test_a_deployment_that_has_taken_what_it_may_is_passed_over(
    upstream: Upstream, served: Served, ask: Any
) -> None:
    await sync_to_async(served)("acme-chat", {"upstream_model": "first", "rpm": 2}, "second")
    for _ in range(4):
        assert (await ask()).status_code == 200
    assert asked(upstream) == ["first", "first", "second", "second"]
    places = [record.deployment_id async for record in UsageRecord.objects.order_by("request_id")]
    assert len(set(places[:2])) == len(set(places[2:])) == 1
    assert places[0] != places[2]


async def test_what_one_protocol_has_no_words_for_goes_to_another(
    upstream: Upstream, served: Served, ask: Any
) -> None:
    claude = await Provider.objects.acreate(
        name="claude", base_url=upstream.url, protocol="anthropic", credential="x"
    )
    await sync_to_async(served)("acme-chat", {"provider": claude, "upstream_model": "c"}, "second")
    assert (await ask(n=2)).status_code == 200
    assert asked(upstream) == ["second"]
    _, attempts = await books()
    assert [attempt.outcome for attempt in attempts] == ["unsupported", "ok"]
    await Deployment.objects.filter(upstream_model="second").aupdate(enabled=False)
    refused = await ask(n=2)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")


async def test_what_runs_counts_against_what_may_run(upstream: Upstream, served: Served, ask: Any) -> None:
    await sync_to_async(served)("acme-chat", {"upstream_model": "first", "max_in_flight": 1}, "second")
    upstream.script("first", together(upstream, 3))
    answers = await asyncio.gather(*(ask() for _ in range(3)))
    assert [answer.status_code for answer in answers] == [200] * 3
    assert Counter(asked(upstream)) == {"first": 1, "second": 2}


async def test_a_model_at_its_capacity_says_when_there_is_room(upstream: Upstream, served: Served, ask: Any) -> None:
    await sync_to_async(served)("acme-chat", {"upstream_model": "only", "rpm": 1})
    assert (await ask()).status_code == 200
    full = await ask()
    assert (full.status_code, full.json()["error"]["type"]) == (503, "server_error")
    assert 50 <= int(full.headers["retry-after"]) <= 61
    assert 50_000 <= int(full.headers["retry-after-ms"]) <= 61_000
    assert asked(upstream) == ["only"]


async def test_a_second_attempt_counts_where_it_is_made(upstream: Upstream, served: Served, ask: Any) -> None:
    await sync_to_async(served)("acme-chat", "first", {"upstream_model": "second", "rpm": 1}, "third")
    upstream.script("first", error(500))
    for _ in range(2):
        assert (await ask()).status_code == 200
    assert asked(upstream) == ["first", "second", "first", "third"]
