"""Tokens of what was delivered, for answers whose provider did not say: counted late, in bounded memory."""

from __future__ import annotations

from gateway.upstreams import tokens

FOLD_LENGTH = 65_536  # characters that are kept before they are counted
MOST_PIECES = 256  # a short string costs 60 bytes, so many of them are joined to one
LONG_PIECE = 4_096

OUTPUT, REASONING = 0, 1


class Meter:
    """Text of one choice. Adding is all that the normal path pays; counting happens when somebody asks."""

    __slots__ = ("_counted", "_pieces")

    def __init__(self) -> None:
        self._pieces: tuple[list[str], list[str]] = ([], [])
        self._counted = [0, 0]

    def reset(self) -> None:
        """Forget what was delivered so far: the provider has reported it."""
        self._pieces[OUTPUT].clear()
        self._pieces[REASONING].clear()
        self._counted = [0, 0]

    def add_output(self, text: str) -> None:
        self._add(OUTPUT, text)

    def add_reasoning(self, text: str) -> None:
        self._add(REASONING, text)

    def counts(self) -> tuple[int, int]:
        """(output, reasoning) tokens since the last reset."""
        for kind in (OUTPUT, REASONING):
            self._fold(kind)
        return self._counted[OUTPUT], self._counted[REASONING]

    def _add(self, kind: int, text: str) -> None:
        pieces = self._pieces[kind]
        pieces.append(text)
        if len(pieces) > MOST_PIECES or len(text) > LONG_PIECE:
            joined = "".join(pieces)
            pieces[:] = [joined]
            if len(joined) > FOLD_LENGTH:
                self._fold(kind)

    def _fold(self, kind: int) -> None:
        pieces = self._pieces[kind]
        self._counted[kind] += tokens.count("".join(pieces))
        pieces.clear()
