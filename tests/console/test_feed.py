"""The live feed: who may listen, what arrives, and that nothing stops it for good."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.layers import get_channel_layer
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from django.db import connections
from django.test import Client

from gateway.asgi import application
from gateway.console import consumers, feed

PATIENCE_SECONDS = 60
EVENT = {"request_id": "1", "at": 1.0, "tenant": "acme", "key": "k", "model": "m", "status": "completed"}


@pytest.fixture(autouse=True)
async def _close_connections(transactional_db: None) -> AsyncIterator[None]:
    yield
    layer: Any = get_channel_layer()
    await layer.flush()
    await sync_to_async(connections.close_all)()


class Patient(WebsocketCommunicator):
    """Channels' own waits a second for each answer, which a busy machine may take for a question to the database.

    Its `wait` stays as it is: a consumer that has said that it closes does not end by itself.
    """

    async def connect(self, timeout: float = PATIENCE_SECONDS) -> tuple[bool, Any]:
        connected: tuple[bool, Any] = await super().connect(timeout)
        return connected

    async def receive_output(self, timeout: float = PATIENCE_SECONDS) -> Any:
        return await super().receive_output(timeout)

    async def receive_json_from(self, timeout: float = PATIENCE_SECONDS) -> Any:
        return await super().receive_json_from(timeout)

    async def disconnect(self, code: int = 1000, timeout: float = PATIENCE_SECONDS) -> None:
        await super().disconnect(code, timeout)


def listener(client: Client | None, origin: str = "http://testserver") -> Patient:
    cookies = client.cookies if client else SimpleCookie()
    text = "; ".join(f"{name}={morsel.value}" for name, morsel in cookies.items())
    headers = [(b"host", b"testserver"), (b"origin", origin.encode()), (b"cookie", text.encode())]
    return Patient(application, "/ws/feed/", headers=headers)


async def signed_in(user: User) -> Client:
    client = Client()
    await sync_to_async(client.force_login)(user)
    return client


async def staff(*permissions: str, name: str = "fiona") -> User:
    def make() -> User:
        user = User.objects.create_user(name, is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        return user

    return await sync_to_async(make)()


async def refused(socket: Patient) -> int:
    connected, _ = await socket.connect()
    if not connected:
        return consumers.FORBIDDEN  # Channels' own check of the origin
    message = await socket.receive_output()
    await socket.wait()
    return int(message["code"]) if message["type"] == "websocket.close" else 0


async def test_it_tells_staff_who_may_see_usage() -> None:
    socket = listener(await signed_in(await staff("view_usagerecord")))
    assert (await socket.connect())[0]
    assert await socket.receive_json_from() == {"events": [], "left_out": 0}

    await feed.publish([EVENT])

    assert await socket.receive_json_from() == {"events": [EVENT], "left_out": 0}
    await socket.disconnect()


async def test_it_tells_nobody_else() -> None:
    other = await staff("view_apikey")
    assert await refused(listener(None)) == consumers.FORBIDDEN
    assert await refused(listener(await signed_in(other))) == consumers.FORBIDDEN
    customer = await staff("view_usagerecord", name="customer")
    customer.is_staff = False
    await customer.asave()
    assert await refused(listener(await signed_in(customer))) == consumers.FORBIDDEN


async def test_it_tells_no_page_of_another_site() -> None:
    client = await signed_in(await staff("view_usagerecord"))
    assert await refused(listener(client, origin="http://evil.example")) == consumers.FORBIDDEN


async def test_it_stops_when_the_session_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers, "RECHECK_SECONDS", -1)
    socket = listener(await signed_in(await staff("view_usagerecord")))
    assert (await socket.connect())[0]
    await socket.receive_json_from()

    await Session.objects.all().adelete()
    await feed.publish([EVENT])

    message = await socket.receive_output()
    assert (message["type"], message["code"]) == ("websocket.close", consumers.FORBIDDEN)
    await socket.wait()


async def test_it_passes_on_what_the_pipeline_appends_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(feed, "MOST", 3)
    socket = listener(await signed_in(await staff("view_usagerecord")))
    await socket.connect()
    await socket.receive_json_from()
    ended = deque([EVENT | {"request_id": str(number)} for number in range(5)])
    pump = asyncio.create_task(feed.pump(ended))

    message = await socket.receive_json_from()

    assert [event["request_id"] for event in message["events"]] == ["2", "3", "4"]
    assert message["left_out"] == 2
    ended.append(EVENT)
    assert (await socket.receive_json_from())["events"] == [EVENT]
    pump.cancel()
    await socket.disconnect()


async def test_it_goes_on_after_an_outage(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(feed, "PAUSE_SECONDS", 0.001)
    sent: list[list[dict[str, Any]]] = []
    down = True

    async def publish(events: list[dict[str, Any]]) -> None:
        if down:
            raise ConnectionError("Valkey is away")
        sent.append(events)

    monkeypatch.setattr(feed, "publish", publish)
    ended = deque([EVENT])
    pump = asyncio.create_task(feed.pump(ended))
    await asyncio.sleep(0.05)
    down = False
    ended.append(EVENT)
    while not any(sent):
        await asyncio.sleep(0.005)
    pump.cancel()
    assert len([record for record in caplog.records if "cannot be published" in record.message]) == 1
