"""Tokens of what was delivered, for answers whose provider did not say: counted late, in bounded memory."""

from __future__ import annotations

from gateway.upstreams import tokens

FOLD_LENGTH = 65_536  # characters that are kept before they are counted


class Meter:
    """Text of one choice. Adding is all that the normal path pays; counting happens when somebody asks."""

    __slots__ = ("_counted", "_kinds", "_length")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what was delivered so far: the provider has reported it."""
        self._kinds: tuple[list[str], list[str]] = ([], [])
        self._counted = [0, 0]
        self._length = 0

    def add_output(self, text: str) -> None:
        self._kinds[0].append(text)
        self._length += len(text)
        if self._length > FOLD_LENGTH:
            self._fold()

    def add_reasoning(self, text: str) -> None:
        self._kinds[1].append(text)
        self._length += len(text)
        if self._length > FOLD_LENGTH:
            self._fold()

    def counts(self) -> tuple[int, int]:
        """(output, reasoning) tokens since the last reset."""
        self._fold()
        return self._counted[0], self._counted[1]

    def _fold(self) -> None:
        for kind, texts in enumerate(self._kinds):
            if texts:
                self._counted[kind] += tokens.count("".join(texts))
                texts.clear()
        self._length = 0
