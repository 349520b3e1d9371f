"""A client that leaves stops the provider, soon, and pays for what was delivered.

How soon is counted in the provider's events, which come every 50 ms: a thousand, if nobody stops it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import requests

from tests.clients.conftest import Shop
from tests.server.conftest import until
from tests.server.raw import CHAT, Connection
from tests.upstream import Served
from tests.upstream_scripts import Script, Stream, hang, words

INTERVAL_SECONDS = 0.05
SOON_EVENTS = 200


def ask(shop: Shop, *, stream: bool, user: str) -> requests.Response:
    return requests.post(
        f"{shop.base_url}/chat/completions",
        headers={"Authorization": f"Bearer {shop.secret}"},
        json={"model": "acme-chat", "messages": [{"role": "user", "content": "Hi"}], "stream": stream, "user": user},
        stream=stream,
        timeout=60,
    )


def gone(served: Callable[[], list[Served]]) -> Served:
    (request,) = served()
    assert request.ended.wait(60)
    assert request.outcome == "gone"
    return request


def test_it_stops_a_stream(shop: Shop) -> None:
    served = shop.serve(Stream(words(1000), INTERVAL_SECONDS))
    with ask(shop, stream=True, user="in the middle") as response:
        lines = [line for _, line in zip(range(12), response.iter_lines(chunk_size=1), strict=False) if line]
        seen = served()[0].events
    request = gone(served)
    assert request.events <= seen + SOON_EVENTS
    record = shop.record(response.headers["x-request-id"])
    assert (record["status"], record["error_code"]) == ("interrupted", "client_disconnected")
    assert record["estimated"]
    delivered = sum('"content": "w' in line.decode() for line in lines)
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
    question = {"model": "acme-chat", "messages": [{"role": "user", "content": "Hi"}], "stream": stream, "user": user}
    with Connection(shop.server) as connection:
        connection.request("POST", CHAT, question, Authorization=f"Bearer {shop.secret}")
        until(lambda: bool(served()))
        if script is not hang:
            connection.head()
            assert connection.chunk()  # of which no word is the provider's
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
