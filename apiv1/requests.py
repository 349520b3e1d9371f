"""The request of the wire: Django's, and what authentication and the server put on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from django.http import HttpRequest

from gateway.logs import RequestLog
from tenants.facts import Caller


class ApiRequest(HttpRequest):
    counterfoil: RequestLog  # by the server, before anything else
    auth: Caller  # by apiv1.auth
    reload: Callable[[Caller], Awaitable[Caller]]  # by apiv1.auth: this caller as the database knows it now
