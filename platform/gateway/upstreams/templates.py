"""What the events of one stream have in common, so that most of them need not be parsed whole.

Providers repeat everything but the delta in each event. Once one event of a choice was parsed, later events
that begin and end with the same bytes differ in the delta only: that alone is parsed, and gets our wrapping.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from gateway.upstreams.choices import Choice
from gateway.upstreams.jsontext import loads

# A quoted key cannot match inside content, because JSON escapes quotes there.
DELTA = re.compile(rb'"delta"\s*:\s*\{')
LONGEST_LESSON = 4096  # bytes
MOST_BRACES = 32


class Template(NamedTuple):
    prefix: bytes  # up to and with the brace that opens the delta
    suffix: bytes  # from the brace that closes it
    choice: Choice
    open: bytes  # ours, for prefix
    close: bytes  # ours, for suffix


def learn(event: bytes) -> tuple[bytes, bytes] | None:
    """(prefix, suffix) of an event that was parsed and has exactly one choice; None if it is too odd."""
    if len(event) > LONGEST_LESSON:
        return None
    found = DELTA.search(event)
    if not found or DELTA.search(event, found.end()):
        return None
    start = end = found.end()
    for _ in range(MOST_BRACES):
        end = event.find(b"}", end)
        if end < 0:
            return None
        try:
            # Only at its own closing brace is an object whole.
            loads(b"{%b}" % event[start:end])
        except ValueError:
            end += 1
        else:
            return event[:start], event[end:]
    return None
