"""Repeats while the first is still being answered, in one process and in two: one call, one charge, one answer."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor, as_completed

import openai
import pytest

from tests.replies.conftest import Shop
from tests.upstream_scripts import Answer, Exchange, Script, Stream, hang, words


@pytest.mark.parametrize("stream", [False, True])
def test_eight_at_once_in_two_processes_get_one_answer(shop: Shop, stream: bool) -> None:
    served = shop.serve(Stream(words(20), interval=0.02) if stream else Answer("One fox.", delay=0.4))
    servers = [shop.server, shop.second]
    answers = shop.at_once(8, lambda number: shop.ask_until_answered(server=servers[number % 2], stream=stream))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 7
    assert len(served()) == 1
    shop.records()


class Patient:
    """A provider that answers when it may."""

    def __init__(self, answer: Script | None = None) -> None:
        self.may = threading.Event()
        self.answer = answer or Answer("A late fox.")

    async def __call__(self, exchange: Exchange) -> None:
        while not self.may.is_set():
            await exchange.pause(0.02)
        await self.answer(exchange)


def test_who_waits_too_long_is_told_to_come_again(shop: Shop) -> None:
    """And the official client does: its second try finds the answer."""
    served = shop.serve(late := Patient())
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(shop.ask)
        shop.kept("running")
        official = pool.submit(_official_answer, shop)
        again = shop.ask(server=shop.second)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "idempotency_key_in_use")
        assert again.headers["retry-after"] == "1"
        late.may.set()
        assert official.result() == "A late fox."
        assert first.result().status_code == 200
    assert len(served()) == 1
    shop.records()


def _official_answer(shop: Shop) -> str | None:
    with openai.OpenAI(base_url=f"{shop.second}/v1", api_key=shop.secret, max_retries=2, timeout=30) as client:
        answer = client.chat.completions.create(**shop.body(), extra_headers={"Idempotency-Key": shop.key})
    return str(answer.choices[0].message.content)


def test_the_other_body_is_refused_at_once_while_the_first_runs(shop: Shop) -> None:
    shop.serve(late := Patient())
    first = threading.Thread(target=shop.ask)
    first.start()
    shop.kept("running")
    other = shop.ask(temperature=0.5)
    late.may.set()
    assert (other.status_code, other.json()["error"]["code"]) == (400, "idempotency_key_reused")
    first.join()


def test_a_tenants_crowd_that_waits_is_bounded_and_takes_no_place_of_others(shop: Shop) -> None:
    """Beyond 64 of a tenant in a process who repeats is told at once."""
    served = shop.serve(mine := Patient(), theirs := Patient())
    with ThreadPoolExecutor(90) as pool:
        first = pool.submit(shop.ask)
        shop.under_way(served)
        neighbours = pool.submit(shop.ask, secret=shop.neighbour)
        shop._until(lambda: len(served()) == 2, "the neighbours' request did not come to the provider")
        began = time.monotonic()
        crowd = [pool.submit(shop.ask, server=shop.second) for _ in range(80)]
        told = next(as_completed(crowd)).result()  # there was no room for it
        again = pool.submit(shop.ask_until_answered, server=shop.second, secret=shop.neighbour)
        assert told.status_code == 409
        with pytest.raises(TimeoutError):
            again.result(0.5)  # it waits
        mine.may.set()
        theirs.may.set()
        soon = time.monotonic() - began < 4.5
        statuses = [asked.result().status_code for asked in crowd]
        assert (first.result().status_code, neighbours.result().status_code) == (200, 200)
        assert again.result().headers["idempotent-replayed"] == "true"
    assert 409 in statuses and set(statuses) <= {200, 409}
    assert not soon or statuses.count(200) >= 60  # on a busy machine they may have waited for as long as one does
    assert len(served()) == 2


def test_many_keys_at_once_are_many_requests(shop: Shop) -> None:
    served = shop.serve()
    keys = [uuid.uuid4().hex for _ in range(30)]
    answers = shop.at_once(60, lambda number: shop.ask_until_answered(key=keys[number % 30]))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 30
    assert len(served()) == 30
    shop.records(30)


# ---- clients that leave ----


class Halting(Patient):
    """A stream of 40 words that halts after the first four until it may go on."""

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.head(200, {"content-type": "text/event-stream"})
        for number, (event, usage) in enumerate(Stream(words(40)).events(exchange)):
            while number == 5 and not self.may.is_set():
                await exchange.pause(0.02)
            await exchange.write(event)
            exchange.usage = usage or exchange.usage
            await exchange.pause(0.02)
        await exchange.write(b"data: [DONE]\n\n")
        await exchange.end()


@pytest.mark.parametrize("server", ["server", "second"])
def test_a_client_that_left_finds_the_whole_answer(shop: Shop, server: str) -> None:
    served = shop.serve(late := Halting())
    with shop.ask(stream=True) as broken:
        for line in broken.iter_lines(chunk_size=1):
            if b'"w3 "' in line:
                break
    assert served()[0].outcome == "running"
    late.may.set()
    again = shop.ask_until_answered(server=getattr(shop, server), stream=True)
    assert again.headers["idempotent-replayed"] == "true"
    assert all(f'"w{number} "'.encode() in again.content for number in range(40))
    assert again.content.endswith(b"data: [DONE]\n\n")
    assert len(served()) == 1
    (record,) = shop.records()
    assert (record["status"], record["output_tokens"], record["estimated"]) == ("completed", 40, False)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_left_before_the_first_byte_finds_it_too(shop: Shop, stream: bool) -> None:
    served = shop.serve(late := Patient(Stream() if stream else Answer("A patient fox.")))
    shop.ask_and_leave(served, stream=stream)
    late.may.set()
    again = shop.ask_until_answered(stream=stream)
    assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
    assert len(served()) == 1
    assert shop.records()[0]["status"] == "completed"


def test_without_the_header_a_client_that_leaves_stops_the_provider(shop: Shop) -> None:
    served = shop.serve(hang)
    shop.ask_and_leave(served, key="-")
    (request,) = served()
    assert request.ended.wait(60)
    assert request.outcome == "gone"


# ---- answers that are too large to keep ----

LARGE = 3000  # words; some 150 bytes of event each. A provider that hangs after them is only ever left, never through


def test_an_answer_that_is_too_large_comes_whole_but_is_not_kept(shop: Shop) -> None:
    served = shop.serve(Stream(words(LARGE)))
    whole = shop.ask(stream=True)
    assert f'"w{LARGE - 1} "'.encode() in whole.content
    assert whole.content.endswith(b"data: [DONE]\n\n")
    again = shop.ask(stream=True)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "idempotency_answer_too_large")
    assert again.headers["x-should-retry"] == "false"
    assert len(served()) == 1
    shop.records()
    assert shop.kept("too_large")["content"] == b""


def test_the_same_without_streaming(shop: Shop) -> None:
    shop.serve(Answer("fox " * 20_000))
    assert len(shop.ask().content) > 64 * 1024
    assert shop.ask().json()["error"]["code"] == "idempotency_answer_too_large"


def test_who_leaves_an_answer_that_is_too_large_stops_it(shop: Shop) -> None:
    served = shop.serve(Stream(words(LARGE), interval=0.002, hang_after=LARGE))
    with shop.ask(stream=True) as broken:
        for line in broken.iter_lines(chunk_size=512):
            if b'"w1000 "' in line:
                break
    (request,) = served()
    assert request.ended.wait(60)
    assert request.outcome == "gone"
    assert [row["status"] for row in shop.records()] == ["interrupted"]
    assert shop.ask(stream=True).json()["error"]["code"] == "idempotency_answer_too_large"


def test_so_does_who_left_before_it_was(shop: Shop) -> None:
    served = shop.serve(Stream(words(LARGE), interval=0.002, hang_after=LARGE))
    with shop.ask(stream=True) as broken:
        next(broken.iter_lines(chunk_size=1))
    (request,) = served()
    assert request.ended.wait(60)
    assert request.outcome == "gone"
    assert [row["status"] for row in shop.records()] == ["interrupted"]


def test_so_does_who_left_before_its_first_byte(shop: Shop) -> None:
    served = shop.serve(late := Patient(Stream(words(LARGE), interval=0.002, hang_after=LARGE)))
    shop.ask_and_leave(served, stream=True)
    late.may.set()
    (request,) = served()
    assert request.ended.wait(60)
    assert request.outcome == "gone"
    shop.kept("too_large")


def test_a_slow_reader_of_a_large_answer_slows_the_provider(shop: Shop) -> None:
    """Nothing of it piles up in the gateway beyond what would have been kept and what sockets hold."""
    count = 60_000
    served = shop.serve(Stream(words(count)))
    with shop.ask(stream=True) as slow:
        next(slow.iter_lines(chunk_size=1))
        sent = -1
        while sent != served()[0].events:  # until it moves no more
            sent = served()[0].events
            time.sleep(0.5)
        assert sent < count
    assert served()[0].ended.wait(60)
    shop.records()
