"""How a stream of events ends, and how it breaks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from django.http import HttpRequest

from apiv1.sse import StreamBroken, event_stream
from gateway.errors import UpstreamError


class Events:
    """A stream of the pipeline's, scripted."""

    def __init__(self, *script: bytes | Exception) -> None:
        self.script = list(script)
        self.closed = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self.script:
            raise StopAsyncIteration
        item = self.script.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    async def aclose(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("fault", "text"),
    [(UpstreamError("It failed."), b"It failed."), (ValueError("hidden"), b"The server had an error")],
)
async def test_a_stream_that_breaks_says_so_and_has_no_end(fault: Exception, text: bytes) -> None:
    events, ended = Events(b"data: 1\n\n", fault), []
    parts = aiter(event_stream(HttpRequest(), events, lambda: ended.append(1))._iterator)  # type: ignore[attr-defined]
    assert await anext(parts) == b"data: 1\n\n"
    event = await anext(parts)
    assert event.startswith(b'data: {"error":{"message":"' + text)
    assert event.endswith(b"}}\n\n")
    assert b"hidden" not in event
    with pytest.raises(StreamBroken):
        await anext(parts)
    assert (events.closed, ended) == (1, [1])


async def test_a_client_that_leaves_closes_the_upstream() -> None:
    events, ended = Events(b"data: 1\n\n", b"data: 2\n\n"), []
    parts = event_stream(HttpRequest(), events, lambda: ended.append(1))._iterator  # type: ignore[attr-defined]
    assert await anext(parts) == b"data: 1\n\n"
    await parts.aclose()
    assert (events.closed, ended) == (1, [1])
