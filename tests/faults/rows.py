"""The table of a provider's faults: what its stream and its whole answer do, and what a client may make of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.faults import wrongs
from tests.faults.wrongs import DONE, Whole, Wrong, first_times
from tests.upstream_scripts import Raw, Script, drop, error, hang, html

WHOLE, ERROR, BROKEN = "whole", "an error", "broken off"
MEGABYTES = 10 * 2**20


@dataclass(frozen=True)
class Fault:
    """`sees`: the client, if nobody else can answer. `hidden`: another deployment answers, and nobody notices."""

    script: Script | None  # None: nobody listens
    sees: str
    hidden: bool = False


@dataclass(frozen=True)
class Row:
    name: str
    stream: Fault
    whole: Fault
    count: int = 5  # requests of each of the four kinds, at once
    status: int = 0  # of the answer, where no other may be seen; 0: any of the provider's faults

    @property
    def id(self) -> str:
        return self.name.replace(" ", "-")


def alike(name: str, script: Script | None, **more: Any) -> Row:
    """Before the first byte of a body: the same for both, and another deployment hides it."""
    fault = Fault(script, ERROR, hidden=True)
    return Row(name, fault, fault, **more)


def fine(name: str, stream: Script, whole: Script, **more: Any) -> Row:
    """Odd, but an answer."""
    return Row(name, Fault(stream, WHOLE), Fault(whole, WHOLE), **more)


def usage(name: str, said: Any) -> Row:
    return fine(f"usage {name}", Wrong(usage=said), Whole(usage=said), count=2)


def before(count: int, tail: bytes = b"", then: Any = None) -> Wrong:
    """After so many good events."""
    return Wrong(count, finish="", usage=None, tail=tail, then=then)


HALF = b'data: {"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"x'
NONSENSE = b"data: {this is not JSON}\n\n"
LONG = b"data: " + b"x" * MEGABYTES
PAGE = b"<html><body>Welcome to our nginx</body></html>"
BIG = "x" * MEGABYTES
BIG_ERROR = Raw((b"x" * MEGABYTES,), 500, {"content-type": "text/html"})

ROWS = [
    alike("refuses", None),
    alike("resets before headers", lambda exchange: wrongs.reset(exchange)),
    alike("closes before headers", drop),
    alike("resets after headers", wrongs.reset_after_head),
    alike("hangs before headers", hang, count=3),
    alike("hangs after headers", wrongs.hang_after_head, count=3),
    alike("no HTTP", wrongs.not_http),
    alike("HTML 502", html(502)),
    Row("HTML 200", Fault(html(200), ERROR), Fault(html(200), ERROR)),
    alike("redirects", Raw((), 307, {"location": "http://127.0.0.1:9/"}, 0)),
    alike("refuses our key", error(401)),
    alike("500", error(500)),
    alike("500 of 10 MB", BIG_ERROR, count=2),
    alike("429 with retry-after", error(429, headers={"retry-after": "7"}), status=429),
    alike("503 with retry-after", error(503, headers={"retry-after": "7"}), status=503),
    Row("400", Fault(error(400, "no such tool"), ERROR), Fault(error(400, "no such tool"), ERROR), status=400),
    Row(
        "hangs in the middle",
        Fault(before(3, then=wrongs.hang), BROKEN),
        Fault(Whole(share=0.5, right_length=False, then=wrongs.hang), ERROR),
        count=3,
    ),
    Row(
        "cut in the middle",
        Fault(before(3, then=wrongs.cut), BROKEN),
        Fault(Whole(share=0.5, right_length=False, then=wrongs.cut), ERROR),
    ),
    Row(
        "reset in the middle",
        Fault(before(3, then=wrongs.reset), BROKEN),
        Fault(Whole(share=0.5, right_length=False, then=wrongs.reset), ERROR),
    ),
    Row(
        "half a chunk",
        Fault(before(3, then=wrongs.half_chunk), BROKEN),
        Fault(Whole(share=0.5, right_length=False, then=wrongs.cut), ERROR),
    ),
    Row(
        "half an event, clean end",
        Fault(before(3, HALF), BROKEN),
        Fault(Whole(share=0.5), ERROR),
    ),
    Row("no JSON later", Fault(before(3, NONSENSE), BROKEN), Fault(Whole(share=0.9), ERROR)),
    Row(
        "no JSON at all",
        Fault(before(0, NONSENSE), ERROR),
        Fault(Raw((b"Hello.",), 200, wrongs.JSON, 6), ERROR),
    ),
    Row(
        "error event first",
        Fault(before(0, b'data: {"error":{"message":"overloaded"}}\n\n'), ERROR),
        Fault(Raw((b'{"error":"overloaded"}',), 200, wrongs.JSON, 22), ERROR),
    ),
    Row(
        "error event later",
        Fault(before(3, b'data: {"error":{"message":"died"}}\n\n'), BROKEN),
        Fault(error(500), ERROR, hidden=True),
    ),
    Row("ends without an end", Fault(before(4), BROKEN), Fault(Raw((), 200, wrongs.JSON, 0), ERROR)),
    fine("10 MB in one event", Wrong(1, piece=BIG, usage=None), Whole(text=BIG, usage=None), count=2),
    Row(
        "10 MB without an end of line",
        Fault(before(3, LONG), BROKEN),
        Fault(Raw((LONG,), 200, wrongs.JSON), ERROR),
        count=2,
    ),
    usage("negative", {"prompt_tokens": -5, "completion_tokens": -7, "total_tokens": -12}),
    usage("in words", {"prompt_tokens": "seven", "completion_tokens": "9", "total_tokens": None}),
    usage("absurd", {"prompt_tokens": 10**15, "completion_tokens": 10**30, "total_tokens": 1}),
    usage("with fractions", {"prompt_tokens": 7.5, "completion_tokens": 9.0, "total_tokens": 16.5}),
    usage("missing", None),
    usage("a list", [7, 9]),
    usage(
        "more cached than sent",
        {"prompt_tokens": 7, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 7000}},
    ),
    fine("[DONE] twice", Wrong(tail=DONE * 2), Whole()),
    fine("no [DONE]", Wrong(tail=b""), Whole()),
    fine("[DONE] without a finish", Wrong(finish=""), Whole()),
    fine("more after [DONE]", Wrong(tail=DONE + NONSENSE + b'data: {"choices":[]}\n\n'), Whole(off=0)),
    fine("byte by byte", Wrong(3, split=7, interval=0.002), Whole()),
    Row(
        "content-length too long",
        Fault(before(2, then=wrongs.cut), BROKEN),
        Fault(Whole(off=100, then=wrongs.cut), ERROR),
    ),
    Row(
        "content-length too short",
        Fault(before(2, HALF), BROKEN),
        Fault(Whole(off=-20), ERROR),
    ),
    Row(
        "a burst of 500s",
        Fault(first_times(8, error(500), Wrong()), ERROR, hidden=True),
        Fault(first_times(8, error(500), Whole()), ERROR, hidden=True),
    ),
]
