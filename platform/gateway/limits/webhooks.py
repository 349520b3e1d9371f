"""Posts a signed event (Standard Webhooks, as OpenAI's own): any OpenAI SDK can verify it.

Headers: `webhook-id` (the same in every attempt), `webhook-timestamp` (epoch seconds of this attempt) and
`webhook-signature`: `v1,` and the base64 of HMAC-SHA256 over `{id}.{timestamp}.{body}` under the secret's bytes.
Redirects are not followed. The address that a name leads to is judged when it is connected to (DNS rebinding).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import socket
import ssl
from ipaddress import ip_address
from urllib.parse import urlsplit

from gateway.upstreams.addresses import check_address, rules

TIMEOUT_SECONDS = 10.0


class NotTaken(Exception):
    """The receiver did not take the event: its status, or what went wrong on the way."""


def sign(secret: str, *, event_id: str, timestamp: int, body: bytes) -> str:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = secret.encode()
    digest = hmac.new(key, f"{event_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def post(url: str, secret: str, *, event_id: str, timestamp: int, body: bytes) -> str:
    """Returns the receiver's status line. Raises NotTaken unless it is 2xx."""
    parts = urlsplit(url)
    kind = _TLSConnection if parts.scheme == "https" else _Connection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
    headers = {
        "content-type": "application/json",
        "user-agent": "counterfoil",
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(secret, event_id=event_id, timestamp=timestamp, body=body),
    }
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("POST", target, body, headers)
        response = connection.getresponse()
        response.read(1024)
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise NotTaken(f"{type(exc).__name__}: {exc}") from exc
    finally:
        connection.close()
    answer = f"{response.status} {response.reason}"
    if not 200 <= response.status < 300:
        raise NotTaken(answer)
    return answer


def _connect(host: str, port: int, timeout: float | None) -> socket.socket:
    """To the first of the host's addresses that answers; none of them may be one that is not to be called."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for info in found:
        check_address(ip_address(str(info[4][0]).partition("%")[0]), rules())
    for number, (family, kind, protocol, _, address) in enumerate(found, 1):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout)
            sock.connect(address)
        except OSError:
            sock.close()
            if number == len(found):
                raise
        else:
            return sock
    raise OSError(f"{host} has no address")


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = _connect(self.host, self.port, self.timeout)


class _TLSConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        context = ssl.create_default_context()
        self.sock = context.wrap_socket(_connect(self.host, self.port, self.timeout), server_hostname=self.host)
