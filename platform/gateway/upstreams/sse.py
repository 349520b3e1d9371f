"""Server-sent events out of whatever pieces the network delivers.

Takes LF, CRLF and CR, pieces cut at any byte, several events in one piece, comments and fields that nobody
asked for; gives the data of each event on one line (line ends between JSON tokens become blanks).
"""

from __future__ import annotations

LARGEST_EVENT = 32 * 2**20  # bytes; more is not an answer, and would only fill the memory


class EventTooLarge(ValueError):
    pass


class EventSplitter:
    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of an event that is not whole yet
        self._length = 0
        self._held = b""  # a CR that may be the first half of CRLF

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of every event that is now whole. Raises EventTooLarge."""
        if self._held or b"\r" in piece:
            piece = self._line_feeds(piece)
        if self._pieces:
            # Looking only at the new piece and the seam keeps an event of many pieces linear.
            seam = self._pieces[-1][-1:] == b"\n" and piece[:1] == b"\n"
            if not seam and b"\n\n" not in piece:
                self._keep(piece)
                return []
            piece = b"".join(self._pieces) + piece
            self._pieces, self._length = [], 0
        *events, rest = piece.split(b"\n\n")
        if rest:
            self._keep(rest)
        return [
            event[6:] if event[:6] == b"data: " and b"\n" not in event else _data(event) for event in events if event
        ]

    def finish(self) -> list[bytes]:
        """At the end of the stream: the last event, if only its blank line is missing."""
        rest = b"".join(self._pieces) + (b"\n" if self._held else b"")
        self._pieces, self._length, self._held = [], 0, b""
        return [_data(rest)] if rest else []

    def _keep(self, piece: bytes) -> None:
        if not piece:
            return
        self._pieces.append(piece)
        self._length += len(piece)
        if self._length > LARGEST_EVENT:
            raise EventTooLarge

    def _line_feeds(self, piece: bytes) -> bytes:
        piece = self._held + piece
        self._held = b""
        if piece.endswith(b"\r"):
            piece, self._held = piece[:-1], b"\r"
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data(event: bytes) -> bytes:
    """The data lines of an event, joined; b"" if it has none. An error may stand there as it is, without a field:
    Gemini writes one so into a stream that has begun."""
    event = event.removeprefix(b"\xef\xbb\xbf")
    if event.lstrip().startswith(b"{") and b'"error"' in event:
        return event.replace(b"\n", b" ")
    lines = []
    for line in event.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b" ".join(lines)
