"""A client that leaves stops the provider within a second, and pays for what was delivered.

A second is counted in the provider's events, which come every 50 ms: twenty.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import requests

from tests.clients.conftest import Shop
from tests.upstream import Served
from tests.upstream_scripts import Script, Stream, hang, words

INTERVAL_SECONDS = 0.05
EVENTS_A_SECOND = 20


def ask(shop: Shop, *, stream: bool, user: str, timeout: float = 20) -> requests.Response:
    return requests.post(
        f"{shop.base_url}/chat/completions",
        headers={"Authorization": f"Bearer {shop.secret}"},
        json={"model": "acme-chat", "messages": [{"role": "user", "content": "Hi"}], "stream": stream, "user": user},
        stream=stream,
        timeout=timeout,
    )


def gone(served: Callable[[], list[Served]]) -> Served:
    (request,) = served()
    assert request.ended.wait(20)
    assert request.outcome == "gone"
    return request


def test_it_stops_a_stream(shop: Shop) -> None:
    served = shop.serve(Stream(words(1000), INTERVAL_SECONDS))
    with ask(shop, stream=True, user="in the middle") as response:
        lines = [line for _, line in zip(range(12), response.iter_lines(chunk_size=1), strict=False) if line]
        seen = served()[0].events
    request = gone(served)
    assert request.events <= seen + EVENTS_A_SECOND
    record = shop.record(response.headers["x-request-id"])
    assert (record["status"], record["error_code"]) == ("interrupted", "client_disconnected")
    assert record["estimated"]
    delivered = sum('"content":"w' in line.decode() for line in lines)
    assert delivered <= record["output_tokens"] <= 3 * request.events  # "w7 " is up to three tokens
    assert record["charge"] == record["input_tokens"] * 1000 + record["output_tokens"] * 2000


@pytest.mark.parametrize(
    ("stream", "script"),
    [(False, hang), (True, hang), (True, Stream(words(2), hang_after=1))],
    ids=["whole", "before the first byte", "in a silence"],
)
def test_it_stops_a_provider_that_says_nothing(
    shop: Shop, stream: bool, script: Script, request: pytest.FixtureRequest
) -> None:
    served = shop.serve(script)
    user = f"silence {request.node.callspec.id}"
    with pytest.raises(requests.exceptions.ConnectionError if stream and script is not hang else requests.Timeout):
        list(ask(shop, stream=stream, user=user, timeout=0.7).iter_lines())
    gone(served)
    record = shop.record_of(user)
    assert (record["status"], record["output_tokens"], record["estimated"]) == ("interrupted", 0, True)
    assert record["input_tokens"] > 0


def test_it_books_what_the_provider_reported_on_the_way(shop: Shop) -> None:
    """Some report after each event (continuous_usage_stats): better than our own count."""
    served = shop.serve(Stream(words(1000), INTERVAL_SECONDS, usage="continuous"))
    with ask(shop, stream=True, user="continuous") as response:
        for line in response.iter_lines(chunk_size=1):
            if b"w5 " in line:
                break
    request = gone(served)
    record = shop.record(response.headers["x-request-id"])
    assert record["status"] == "interrupted"
    assert 5 < record["output_tokens"] <= request.events
    assert record["input_tokens"] == 4  # the provider's figure
