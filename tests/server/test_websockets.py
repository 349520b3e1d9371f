"""WebSockets through our channel: Daphne's protocol takes the connection over, and gives it up in a drain."""

from __future__ import annotations

import json

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from tests.server.conftest import until
from tests.server.raw import ask
from tests.servers import RunningServer, running_server

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def cookie() -> str:
    """Of a signed-in admin."""
    client = Client()
    client.force_login(get_user_model().objects.create_superuser("ada", "ada@example.com", "secret"))
    return f"sessionid={client.cookies['sessionid'].value}"


def open_feed(server: RunningServer, cookie: str = "", path: str = "/ws/feed/") -> ClientConnection:
    url = server.replace("http", "ws", 1) + path
    return connect(url, origin=Origin(server), additional_headers={"Cookie": cookie}, open_timeout=60)


def test_a_drain_closes_them_as_going_away(cookie: str) -> None:
    with running_server() as server:
        with open_feed(server, cookie) as feed:
            assert json.loads(feed.recv(timeout=60)) == {"events": [], "left_out": 0}
            assert feed.ping().wait(60)
            assert ask(server, "GET", "/livez").status == 200
            server.process.terminate()
            with pytest.raises(ConnectionClosed) as closed:
                feed.recv(timeout=60)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        assert server.process.wait(60) == 0
        assert not [line for line in server.lines() if line["level"] == "error"]


def test_strangers_and_unknown_paths_are_turned_away() -> None:
    with running_server() as server:
        with pytest.raises(InvalidStatus), open_feed(server, path="/ws/nothing/"):
            pass
        with open_feed(server) as feed, pytest.raises(ConnectionClosed):
            feed.recv(timeout=60)
        until(lambda: ask(server, "GET", "/livez").status == 200)
        assert not [line for line in server.lines() if line["level"] == "error"]
