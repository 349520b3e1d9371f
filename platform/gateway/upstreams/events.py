"""A provider's stream in its own words, read as OpenAI's: what Relay gets when the protocol is another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from gateway.errors import GatewayError, UpstreamError
from gateway.upstreams.base import Target
from gateway.upstreams.faults import note
from gateway.upstreams.jsontext import dumps, loads
from gateway.upstreams.relay import Source
from gateway.upstreams.sse import EventSplitter, EventTooLarge
from gateway.upstreams.translator import FAILED

Json = dict[str, Any]


class StreamFault(Exception):
    """An event that says that the provider failed: the status that it would have been, and its body."""

    def __init__(self, status: int, said: Json) -> None:
        super().__init__(status)
        self.status, self.body = status, dumps(said)


class Interpreter(Protocol):
    """One stream. `done` after the event that properly ends it."""

    done: bool

    def chunks(self, event: Json) -> list[Json]:
        """OpenAI's chunks (`choices`, `usage`) for one event. Raises StreamFault."""
        ...


class Interpreted:
    """relay.Source. `fault` maps a StreamFault while the answer can still be an ordinary error."""

    def __init__(
        self, source: Source, interpreter: Interpreter, target: Target, fault: Callable[[int, bytes], GatewayError]
    ) -> None:
        self._source, self._interpreter, self._target, self._fault = source, interpreter, target, fault
        self._splitter = EventSplitter()
        self._failure: GatewayError | None = None
        self._ended = self._begun = False

    async def read(self) -> bytes:
        while not self._ended:
            piece = await self._source.read()
            self._ended = not piece
            if translated := self._translate(piece):
                return translated
        if self._failure is not None:
            raise self._failure
        return b""

    def finish(self) -> None:
        self._source.finish()

    def abort(self, cause: str = "") -> None:
        self._source.abort(cause)

    def _translate(self, piece: bytes) -> bytes:
        """What came before a failure is among it; the failure is raised when there is nothing left to read."""
        out: list[bytes] = []
        try:
            for event in self._splitter.feed(piece) if piece else self._splitter.finish():
                if event and not event.isspace():
                    out += [b"data: " + dumps(chunk) + b"\n\n" for chunk in self._chunks(event)]
                if self._interpreter.done:
                    out.append(b"data: [DONE]\n\n")
                    self._ended = True
                    break
        except StreamFault as exc:
            self._fail(self._mapped(exc))
        except EventTooLarge:
            self._fail(self._broken("an event is too large"))
        except UpstreamError as exc:
            self._fail(exc)
        return b"".join(out)

    def _chunks(self, event: bytes) -> list[Json]:
        try:
            said = loads(event)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise self._broken("an event is not a JSON object")
        chunks = self._interpreter.chunks(said)
        self._begun = self._begun or any(chunk["choices"] for chunk in chunks)
        return chunks

    def _mapped(self, exc: StreamFault) -> GatewayError:
        if not self._begun:
            return self._fault(exc.status, exc.body)
        return self._broken(f"an event says: {exc.body[:200].decode(errors='replace')}")

    def _broken(self, cause: str) -> UpstreamError:
        note(self._target, cause)
        return UpstreamError(FAILED)

    def _fail(self, failure: GatewayError) -> None:
        self._failure, self._ended = failure, True
