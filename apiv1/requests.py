"""The request of the wire: Django's, and what authentication and the server put on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from django.http import HttpRequest

from gateway.logs import RequestLog
from tenants.facts import Caller


class KeepAlive(Protocol):
    """What says something to the client while the provider says nothing (gateway.server.keepalive)."""

    def begin(self, *, stream: bool, headers: Callable[[], Mapping[str, str]]) -> None:
        """From now on. `headers` gives those of the response that are known when it has to begin without it."""
        ...


class ApiRequest(HttpRequest):
    scope: Mapping[str, Any]  # ASGI's
    counterfoil: RequestLog  # by the server, before anything else
    auth: Caller  # by apiv1.auth
    reload: Callable[[Caller], Awaitable[Caller]]  # by apiv1.auth: this caller as the database knows it now
    keep_alive: KeepAlive | None  # by our server; Django's own handler sets none
