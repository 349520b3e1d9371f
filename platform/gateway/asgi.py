"""The ASGI application: `python -m gateway.server`, or any ASGI server (`daphne gateway.asgi:application`).

HTTP goes to the lean handler (inference) or Django's own; WebSockets to the console's consumers, for pages of
our own hosts, with the admin's session.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")

from django.core.asgi import get_asgi_application

stock = get_asgi_application()

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.urls import re_path  # noqa: E402

from gateway.console.routing import websocket_urlpatterns  # noqa: E402
from gateway.server.lean import Dispatcher, Receive, Scope, Send  # noqa: E402


async def nobody(scope: Scope, receive: Receive, send: Send) -> None:
    """A WebSocket to a path that nobody serves."""
    await receive()
    await send({"type": "websocket.close", "code": 4404})


websockets: list[Any] = [*websocket_urlpatterns, re_path(r"", nobody)]  # type: ignore[arg-type]

application = ProtocolTypeRouter(
    {
        "http": Dispatcher(stock),
        "websocket": AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(websockets))),
    }
)
