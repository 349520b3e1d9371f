"""The live feed's WebSocket. Whoever may see usage records in the admin may listen, nobody else."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from django.contrib.auth import SESSION_KEY, get_user_model

from gateway.console.feed import GROUP

PERMISSION = "ledger.view_usagerecord"
FORBIDDEN = 4403
RECHECK_SECONDS = 15


class FeedConsumer(AsyncJsonWebsocketConsumer):
    """Sends {"events": […], "left_out": n}; listens to nothing."""

    checked_at = 0.0

    async def connect(self) -> None:
        # Accepted first: a socket that is closed while it opens cannot tell the page its code.
        await self.accept()
        if not (self._same_origin() and await self._allowed()):
            await self.close(FORBIDDEN)
            return
        await self.channel_layer.group_add(GROUP, self.channel_name)
        await self.send_json({"events": [], "left_out": 0})

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(GROUP, self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None, **kwargs: Any) -> None:
        """What a page sends is not read."""

    async def feed_events(self, message: dict[str, Any]) -> None:
        if time.monotonic() - self.checked_at > RECHECK_SECONDS and not await self._allowed():
            await self.close(FORBIDDEN)
            return
        await self.send_json({"events": message["events"], "left_out": message["left_out"]})

    async def _allowed(self) -> bool:
        """Asked again while the socket lives: a log-out or a lost permission ends the feed, too."""
        self.checked_at = time.monotonic()
        return bool(await database_sync_to_async(self._may_listen)())

    def _may_listen(self) -> bool:
        session = self.scope.get("session")
        if session is None or not session.exists(session.session_key or "-"):
            return False
        user = get_user_model().objects.filter(pk=session.get(SESSION_KEY), is_active=True, is_staff=True).first()
        return user is not None and user.has_perm(PERMISSION)

    def _same_origin(self) -> bool:
        """Browsers send the session's cookie and the page's origin; both must be ours."""
        headers = {name: value.decode("latin-1") for name, value in self.scope["headers"]}
        origin = headers.get(b"origin")
        return origin is None or urlsplit(origin).netloc == headers.get(b"host")
