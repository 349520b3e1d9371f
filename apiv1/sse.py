"""Server-sent events: the response of a streamed answer, and how one breaks off.

Each event is `data: <JSON>` and an empty line. A fault after the first byte is one event with the error,
and then the connection must be dropped without the end of the chunked body, since SDKs take a clean end for
success (openai-wire.md 4). `StreamBroken` out of the iterator tells the server to do so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping

from django.http import HttpRequest, StreamingHttpResponse

from apiv1.errors import error_object, translated
from gateway.errors import GatewayError

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
CONTENT_TYPE = "text/event-stream; charset=utf-8"


class StreamBroken(Exception):
    """The error event is out: drop the connection, do not end the body."""


def error_event(exc: GatewayError) -> bytes:
    return b"data: " + error_object(exc) + b"\n\n"


def event_stream(
    request: HttpRequest,
    events: AsyncIterator[bytes],
    ended: Callable[[], None],
    headers: Mapping[str, str] = HEADERS,
) -> StreamingHttpResponse:
    """A response that relays `events`; `ended` is called once, however they end."""
    headers = HEADERS if headers is HEADERS else {**HEADERS, **headers}
    return StreamingHttpResponse(_relay(request, events, ended), content_type=CONTENT_TYPE, headers=headers)


async def _relay(
    request: HttpRequest, events: AsyncIterator[bytes], ended: Callable[[], None]
) -> AsyncIterator[bytes]:
    try:
        async for part in events:
            yield part
    except Exception as exc:
        yield error_event(translated(exc, request))
        raise StreamBroken from exc
    finally:
        ended()
        # A client that left closes this generator at its `yield`: the upstream must hear of it now, not when
        # the garbage collector finds the inner one.
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
