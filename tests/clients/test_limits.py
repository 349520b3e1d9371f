"""The official packages against limits: they wait as told and succeed, and do not retry what money refuses."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.clients.conftest import Shop

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello there"}]
RULE = """
INSERT INTO limits_limitrule (key_id, metric, per, tokens, amount, currency, mode, hold, on_shortage, floor,
    fiscal_day, thresholds, enabled, created_at)
SELECT id, %s, %s, 'both', %s, %s, 'enforce', 'expected', 'refuse', 16, 1, '{}', true, now()
FROM tenants_apikey WHERE public_id = %s RETURNING id
"""
# As if so many had come 52 seconds ago: the minute is full, and forgets them in nine.
FILL = """
INSERT INTO limits_limitcounter (rule_id, owner_id, window_start, used, held, slot_at, slots)
SELECT %s, 0, 'epoch', 0, 0, s.at, ledger_slots_add(NULL, s.at, ARRAY[s.at - 52], ARRAY[%s::numeric], s.at)
FROM (SELECT floor(extract(epoch FROM clock_timestamp()))::bigint AS at) s RETURNING id
"""


@pytest.fixture
def limited(shop: Shop) -> Callable[..., str]:
    """limited(metric, per, amount, full=True): the secret of a new key with that limit."""

    def make(metric: str, per: str, amount: int, *, currency: str = "", full: bool = False) -> str:
        secret = shop.house.manage("issue_key", "--tenant", "acme", "--name", f"limited-{uuid.uuid4().hex}").strip()
        ((rule),) = shop.house.query(RULE, [metric, per, amount, currency, secret.split("-")[2]])
        if full:
            shop.house.query(FILL, [rule["id"], amount])
        return secret

    return make


def logged(shop: Shop, secret: str, *statuses: int) -> bool:
    """True if this key's requests were answered so, in this order. A line is written after its answer is out."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = [line["status"] for line in shop.server.request_lines() if line.get("key") == secret.split("-")[2]]
        if len(lines) >= len(statuses):
            break
        time.sleep(0.02)
    return lines == list(statuses)


@pytest.mark.parametrize("stream", [False, True])
def test_python_waits_as_told_and_succeeds(shop: Shop, limited: Callable[..., str], stream: bool) -> None:
    secret = limited("requests", "minute", 3, full=True)
    with openai.OpenAI(base_url=shop.base_url, api_key=secret, max_retries=2, timeout=90) as client:
        raw = client.chat.completions.with_raw_response.create(model="acme-echo", messages=HELLO, stream=stream)
        assert raw.headers["x-ratelimit-limit-requests"] == "3"
        assert raw.headers["x-ratelimit-remaining-requests"] == "2"
        raw.parse() if not stream else list(raw.parse())
    assert logged(shop, secret, 429, 200)  # one wait was enough


def test_tokens_come_back_when_it_says(shop: Shop, limited: Callable[..., str]) -> None:
    secret = limited("tokens", "minute", 100, full=True)
    with openai.OpenAI(base_url=shop.base_url, api_key=secret, max_retries=1, timeout=90) as client:
        answer = client.chat.completions.create(model="acme-echo", messages=HELLO, max_tokens=20)
    assert answer.choices[0].message.content == "Hello there"
    assert logged(shop, secret, 429, 200)


def test_python_does_not_retry_what_money_refuses(shop: Shop, limited: Callable[..., str]) -> None:
    secret = limited("spend", "month", 1, currency="USD")
    with (
        openai.OpenAI(base_url=shop.base_url, api_key=secret, max_retries=2, timeout=90) as client,
        pytest.raises(openai.RateLimitError) as refused,
    ):
        client.chat.completions.create(model="acme-echo", messages=HELLO)
    assert (refused.value.code, refused.value.type) == ("insufficient_quota", "insufficient_quota")
    assert "(Europe/Berlin)" in refused.value.message
    assert logged(shop, secret, 429)


def test_python_does_not_retry_what_can_never_fit(shop: Shop, limited: Callable[..., str]) -> None:
    secret = limited("tokens", "minute", 10)
    with (
        openai.OpenAI(base_url=shop.base_url, api_key=secret, max_retries=2, timeout=90) as client,
        pytest.raises(openai.RateLimitError) as refused,
    ):
        client.chat.completions.create(model="acme-echo", messages=HELLO, max_tokens=50)
    assert "Request too large" in refused.value.message
    assert logged(shop, secret, 429)


def test_node_waits_as_told_and_leaves_money_alone(
    shop: Shop, limited: Callable[..., str], node: Callable[..., Any]
) -> None:
    broke = limited("spend", "day", 1, currency="USD")
    full = limited("requests", "minute", 3, full=True)  # last: it does not stay full for long
    assert node("limits.mjs", API_KEY=full) == {"content": "Hello there", "remaining": "2"}
    assert logged(shop, full, 429, 200)
    assert node("limits.mjs", API_KEY=broke) == {"status": 429, "code": "insufficient_quota"}
    assert logged(shop, broke, 429)
