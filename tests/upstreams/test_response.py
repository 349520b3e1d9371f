"""gateway.upstreams.response against a server that says exactly what a test wants it to say."""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.errors import UpstreamError, UpstreamTimeout
from gateway.upstreams.base import Target
from gateway.upstreams.client import Client

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
LARGE = b"x" * 20_000_000  # more than the kernel takes at once


@asynccontextmanager
async def serving(talk: Talk, *, tls: ssl.SSLContext | None = None, **changes: Any) -> AsyncIterator[Target]:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    facts: dict[str, Any] = {"base_url": f"http://127.0.0.1:{port}/v1", "credential": "sk-x", "upstream_model": "m"}
    facts |= {"deployment_id": 1, "provider_id": 1, "protocol": "openai"}
    facts |= {"connect_timeout_s": 5, "read_timeout_s": 5}
    async with server:
        yield Target(**facts | changes)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    client = Client()
    yield client
    await client.close()
    await asyncio.sleep(0)


async def request_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    return head, await reader.readexactly(length)


async def test_what_is_sent(client: Client) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            seen.append(await request_of(reader))
            writer.write(OK)

    async with serving(talk) as target:
        headers = (("Authorization", "Bearer sk-x"), ("x-version", "7"))
        for body in (b"{}", LARGE):
            assert await (await client.post(target, "/chat", body, headers=headers)).read_all() == b"{}"
        assert await (await client.get(target, "/models?limit=7", headers=headers)).read_all() == b"{}"
    assert [head.split(b"\r\n")[0] for head, _ in seen] == [
        b"POST /v1/chat HTTP/1.1",
        b"POST /v1/chat HTTP/1.1",
        b"GET /v1/models?limit=7 HTTP/1.1",
    ]
    assert [body for _, body in seen] == [b"{}", LARGE, b""]
    lines = seen[0][0].split(b"\r\n")
    assert {b"Authorization: Bearer sk-x", b"x-version: 7"} < set(lines) and b"Host: 127.0.0.1:" in lines[1]


async def test_interim_answers_are_passed_over(client: Client) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK)

    async with serving(talk) as target:
        response = await client.post(target, "/chat", b"{}")
        assert (response.status, await response.read_all()) == (200, b"{}")


async def test_a_refusal_before_all_was_sent_is_read(client: Client) -> None:
    refused = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await refused.wait()

    async with serving(talk) as target:
        response = await client.post(target, "/chat", LARGE)
        assert (response.status, await response.read_all()) == (413, b"big")
        refused.set()


async def test_leaving_in_the_middle_of_sending_closes_the_connection(client: Client) -> None:
    ended = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        task.cancel()
        while await reader.read(2**20):
            pass
        ended.set()

    async with serving(talk) as target:
        task = asyncio.create_task(client.post(target, "/chat", LARGE))
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ended.wait(), 60)


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b""])
async def test_what_is_not_http_is_an_upstream_error(client: Client, answer: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(answer)

    async with serving(talk) as target:
        with pytest.raises(UpstreamError):
            await client.post(target, "/chat", b"{}")


async def test_our_own_pauses_are_not_the_providers_silence(client: Client) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nfirst")
        await reader.read()

    async with serving(talk, first_byte_timeout_s=60, read_timeout_s=0.2) as target:
        response = await client.post(target, "/chat", b"{}")
        assert await response.read() == b"first"
        await asyncio.sleep(0.5)
        assert response._connection.protocol is not None
        with pytest.raises(UpstreamTimeout):
            await response.read()
        response.abort()


async def test_dropping_an_answer_hangs_up(client: Client) -> None:
    ended = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nfirst")
        await reader.read()
        ended.set()

    async with serving(talk) as target:
        response = await client.post(target, "/chat", b"{}")
        del response
        gc.collect()
        await asyncio.wait_for(ended.wait(), 60)


async def test_it_speaks_tls(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, body = await request_of(reader)
        text = json.dumps(len(body)).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))

    server, trusting = certificates(tmp_path)
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)
    async with serving(talk, tls=server) as target:
        secure = replace(target, base_url=target.base_url.replace("http:", "https:"))
        response = await client.post(secure, "/chat", LARGE)
        assert await response.read_all() == b"20000000"


def certificates(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context for 127.0.0.1, and a client's that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
    )
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(secret + pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem")
    return server, ssl.create_default_context(cadata=pem.decode())
