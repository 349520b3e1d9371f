"""What every provider protocol looks like from the pipeline. An adapter is one file with an `Adapter`.

Requests and answers are in OpenAI's chat format on this side, whatever the provider speaks; an adapter
translates. It raises `gateway.errors` (UpstreamError, UpstreamTimeout, RateLimited, InvalidRequest) with
nothing of the provider's name, keys, hosts or ids in the message, and never touches a database or Django.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Target:
    """A deployment, resolved: where the request goes and under which name."""

    deployment_id: int
    provider_id: int
    protocol: str
    base_url: str
    credential: str
    upstream_model: str
    connect_timeout_s: float
    read_timeout_s: float  # between two pieces of an answer
    first_byte_timeout_s: float | None = None  # None: as between two pieces
    total_timeout_s: float | None = None  # of the call, from connecting to the last byte; None: none
    api_version: str = ""
    context_window: int | None = None
    provider: str = ""  # our name of it, which no client may read


class Face(NamedTuple):
    """How the answer must look to the client, whatever the provider says of itself."""

    id: str  # chatcmpl-…
    created: int  # unix seconds
    model: str  # public id
    reasoning_field: str = "reasoning"  # reasoning | reasoning_content | both
    include_usage: bool = False  # the client asked for the usage chunk


@dataclass(frozen=True, slots=True)
class Usage:
    """Token classes that do not overlap: input is the uncached part, output is without reasoning."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False  # counted by us, not reported by the provider

    @property
    def total(self) -> int:
        return (
            self.input_tokens
            + self.cached_input_tokens
            + self.cache_write_tokens
            + self.output_tokens
            + self.reasoning_tokens
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole, non-streaming answer: JSON bytes for the client, and its usage (estimated if none came)."""

    body: bytes
    usage: Usage


class Stream(Protocol):
    """A stream whose first event has arrived. Iterating yields SSE bytes for the client, whole events,
    those of one upstream read joined; the usage chunk is among them only if `Face.include_usage`; `[DONE]`
    never is (the pipeline sends it after settlement). A provider that fails midway raises UpstreamError.
    """

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    @property
    def usage(self) -> Usage:
        """Reported so far, else estimated from what was delivered. Valid at any time."""
        ...

    async def aclose(self) -> None:
        """Cancel the provider's work at once (close its connection). Idempotent."""
        ...


class Adapter(Protocol):
    async def complete(self, target: Target, request: dict[str, Any], face: Face) -> Answer: ...

    async def open_stream(self, target: Target, request: dict[str, Any], face: Face) -> Stream: ...

    async def close(self) -> None:
        """Release pooled connections."""
        ...
