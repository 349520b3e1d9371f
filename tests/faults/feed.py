"""The admin's live feed as a browser gets it: signed in over HTTP, then a WebSocket."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

import requests
import websockets

from tests.house import House

NAME, PASSWORD = "watcher", "an admin of the faults"


def make_admin(house: House) -> None:
    find = f"User.objects.filter(username={NAME!r}).exists()"
    make = f"User.objects.create_superuser({NAME!r}, password={PASSWORD!r})"
    house.manage("shell", "-c", f"from django.contrib.auth.models import User; {find} or {make}")


def cookie_of(port: int) -> str:
    """A session's cookie."""
    url = f"http://127.0.0.1:{port}/admin/login/"
    with requests.Session() as session:
        page = session.get(url, timeout=30)
        token = re.findall(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)[0]
        form = {"username": NAME, "password": PASSWORD, "csrfmiddlewaretoken": token, "next": "/admin/"}
        session.post(url, form, headers={"referer": url}, timeout=30)
        return f"sessionid={session.cookies['sessionid']}"


async def next_event(port: int, cookie: str, seconds: float = 60) -> dict[str, Any]:
    """The first event that comes; the page connects again whenever its line breaks, and so does this."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            async with (
                asyncio.timeout(deadline - time.monotonic()),
                websockets.connect(
                    f"ws://127.0.0.1:{port}/ws/feed/", additional_headers={"Cookie": cookie}, proxy=None
                ) as line,
            ):
                async for message in line:
                    events = json.loads(message)["events"]
                    if events:
                        return dict(events[-1])
        except (OSError, websockets.exceptions.WebSocketException):
            assert time.monotonic() < deadline, "nothing comes"
            await asyncio.sleep(0.2)
