"""What layers above the catalogue add to a file: limits and plans. They say so when their app is ready."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gateway.catalogue.apply.statements import Entry, Kind
    from gateway.catalogue.apply.writer import Writer


class Extension(Protocol):
    def kinds(self, sections: Mapping[str, Kind]) -> dict[str, Kind]:
        """The sections with what this adds: sections, lists within things, extra fields of things."""

    def prepare(self, writer: Writer, stated: Mapping[str, list[Entry]]) -> None:
        """Called before tenants are written: what would stand against their change. Problems are told by `write`."""

    def write(self, writer: Writer, stated: Mapping[str, list[Entry]]) -> None:
        """Called last, in the same transaction; what is wrong goes into `writer.problems`."""


extensions: list[Extension] = []
