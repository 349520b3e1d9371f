"""Something to say while a provider says nothing, so that no load balancer cuts a line for being idle.

Streams get SSE comments between whole events, whole answers blanks before their JSON. The first one sends the
status and the headers too, if nothing was sent yet: from then on the status is 200 whatever happens, and a fault
can only be told in the body (docs/time-outs.md).

One timer per request that looks at the clock now and then, as for providers (upstreams/response.py): 1 us a request
and 0.1 us an event. A client that does not read gets nothing: the server leaves fillers out, and whoever waits for
the client sets `quiet_since` to None.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping

from django.conf import settings

from apiv1.errors import JSON
from apiv1.sse import CONTENT_TYPE, HEADERS
from gateway import timeouts
from gateway.server.cors import Pairs
from gateway.server.inbound import Headers
from gateway.timeouts import Timeout

COMMENT = b": keep-alive\n\n"
BLANK = b" "
AGAIN_SECONDS = 15  # between two blanks; the first may come later
OFF = frozenset({b"off", b"0", b"false", b"no"})

Say = Callable[[bytes], Coroutine[None, None, None]]


class KeepAlive:
    """Of one request. The server makes it and closes it, the view begins it, once it knows what was asked for."""

    __slots__ = (
        "_again",
        "_framed",
        "_headers",
        "_loop",
        "_say",
        "_silence",
        "_speaking",
        "_timer",
        "quiet_since",
        "stream",
    )

    def __init__(self, say: Say | None, *, framed: bool = True) -> None:
        """`say` sends a filler, and the head before it if that is due; None: nothing is to be said. `framed`: the
        client can tell a broken body from a whole one. HTTP/1.0's cannot, and would take an error for an answer."""
        self._say, self._framed = say, framed
        self._timer: Timeout | asyncio.TimerHandle | None = None
        self._speaking: asyncio.Task[None] | None = None
        self.stream = True
        self.quiet_since: float | None = None  # when something was last sent; None: the client is waited for

    def begin(self, *, stream: bool, headers: Callable[[], Mapping[str, str]]) -> None:
        """Speak after a silence, counted from now. `headers` gives those of the response that are known by then."""
        self.stream = stream
        self._silence = settings.SSE_KEEP_ALIVE_SECONDS if stream else settings.WHOLE_KEEP_ALIVE_SECONDS
        if self._say is None or not self._silence or not (stream or self._framed):
            return
        self._again = self._silence if stream else min(self._silence, AGAIN_SECONDS)
        self._headers = headers
        self._loop = asyncio.get_running_loop()
        self.quiet_since = self._loop.time()
        self._timer = timeouts.call_later(self._loop, self._silence, self._look_at_clock)

    def close(self) -> None:
        """Say nothing more. Idempotent. It also lets go of the request, which else would be in a cycle with this."""
        self._say = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            del self._headers
        if self._speaking is not None:
            self._speaking.cancel()

    def head(self) -> Pairs:
        """The headers of a response that has to begin without one of the view's."""
        known = {"content-type": CONTENT_TYPE, **HEADERS} if self.stream else {"content-type": JSON}
        pairs = {**known, **self._headers()}
        return [(name.lower().encode("latin1"), value.encode("latin1")) for name, value in pairs.items()]

    def _look_at_clock(self) -> None:
        say, now, since = self._say, self._loop.time(), self.quiet_since
        left = self._silence if since is None else since + self._silence - now
        if left <= 0 and say is not None:
            self._silence = left = self._again
            if self._speaking is None:
                self._speaking = self._loop.create_task(say(COMMENT if self.stream else BLANK))
                self._speaking.add_done_callback(self._spoken)
        self._timer = self._loop.call_later(left, self._look_at_clock)

    def _spoken(self, task: asyncio.Task[None]) -> None:
        self._speaking = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": "A keep-alive failed", "exception": error, "task": task})


def wanted(scope: Mapping[str, object], headers: Headers) -> bool:
    """Not on another server than ours, which knows no fillers; and a client may refuse them."""
    extensions = scope.get("extensions")
    if not isinstance(extensions, dict) or "http.response.filler" not in extensions:
        return False
    value = headers.raw(b"x-counterfoil-keep-alive")
    return value is None or value.strip().lower() not in OFF
