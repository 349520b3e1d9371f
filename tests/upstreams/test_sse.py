"""gateway.upstreams.sse: events out of any pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstreams import sse
from gateway.upstreams.sse import EventSplitter, EventTooLarge


def split(*pieces: bytes) -> list[bytes]:
    splitter = EventSplitter()
    return [event for piece in pieces for event in splitter.feed(piece) if event] + [
        e for e in splitter.finish() if e
    ]


@given(
    data=st.lists(st.text(alphabet='ab{}":,é😀', max_size=20), max_size=8),
    cuts=st.lists(st.integers(0, 400), max_size=12),
    eol=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    noise=st.sampled_from([b"", b": ping", b"event: message", b"id: 7", b"retry: 10"]),
)
def test_it_gives_the_same_events_wherever_the_stream_is_cut(
    data: list[str], cuts: list[int], eol: bytes, noise: bytes
) -> None:
    events = [text.encode() for text in data]
    head = noise + eol if noise else b""
    stream = b"".join(head + b"data: " + event + eol * 2 for event in events)
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    pieces = [stream[a:b] for a, b in pairwise(places)]
    assert split(*pieces) == [event for event in events if event]


def test_it_takes_fields_without_a_blank_and_a_byte_order_mark() -> None:
    assert split(b"\xef\xbb\xbfdata:{}\n\ndata: 1\n\n") == [b"{}", b"1"]


def test_it_puts_an_event_of_several_lines_on_one() -> None:
    assert split(b'data: {"a":\ndata: 1}\n\n') == [b'{"a": 1}']


def test_it_drops_comments() -> None:
    assert split(b": OPENROUTER PROCESSING\n\n: ping\ndata: 1\n\n") == [b"1"]


def test_an_error_needs_no_field() -> None:
    error = b'{\n  "error": {\n    "code": 503\n  }\n}'
    flat = error.replace(b"\n", b" ")
    assert split(b"data: 1\n\n", error) == split(b"data: 1\n\n" + error + b"\n\n") == [b"1", flat]
    assert split(b"{oops}\n\n{}\n\n") == []


def test_it_gives_the_last_event_without_its_blank_line_at_the_end() -> None:
    assert split(b"data: 1\n\ndata: [DONE]") == [b"1", b"[DONE]"]
    assert split(b"data: [DONE]\r") == [b"[DONE]"]


def test_it_takes_large_events_in_many_pieces() -> None:
    large = b"x" * 2**20
    stream = b"data: " + large + b"\n\n"
    assert split(*(stream[at : at + 999] for at in range(0, len(stream), 999))) == [large]


def test_it_refuses_an_event_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "LARGEST_EVENT", 1000)
    splitter = EventSplitter()
    with pytest.raises(EventTooLarge):
        for _ in range(200):
            splitter.feed(b"data: no end in sight")
