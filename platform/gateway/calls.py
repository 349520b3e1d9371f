"""One request of a client, as the pipeline gets it and as the request log finds it afterwards."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from gateway.identifiers import uuid7
from gateway.upstreams.base import Usage
from tenants.facts import Caller

Reload = Callable[[Caller], Awaitable[Caller]]


@dataclass(slots=True)
class Call:
    """One request of a client, validated. The lower part is filled on the way, for the request log."""

    caller: Caller
    body: dict[str, Any]
    model: str
    stream: bool
    include_usage: bool
    reload: Reload
    endpoint: str = "chat.completions"
    request_id: UUID = field(default_factory=uuid7)
    client_request_id: str = ""
    end_user: str = ""
    public_model: str = ""
    usage: Usage | None = None
    outcome: str = ""
    began: float = field(default_factory=time.perf_counter)
    first_byte_ms: int | None = None
    headers: dict[str, str] = field(default_factory=dict)  # for the response: rate limits, a lowered cap
