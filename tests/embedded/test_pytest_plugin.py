from __future__ import annotations

import asyncio
import socket

import pytest

from gateway.embedded.pytest_plugin import NetworkClosed


def test_it_refuses_other_machines() -> None:
    with socket.socket() as client, pytest.raises(NetworkClosed):
        client.connect(("192.0.2.1", 80))


def test_it_refuses_to_look_names_up() -> None:
    with pytest.raises(NetworkClosed):
        socket.getaddrinfo("upstream.example", 443)


async def test_it_refuses_asyncio_too() -> None:
    with pytest.raises(NetworkClosed):
        await asyncio.open_connection("192.0.2.1", 80)


async def test_it_lets_loopback_through() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("localhost", port)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
