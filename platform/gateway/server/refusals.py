"""A whole HTTP response as bytes, for a request that no application will see."""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus

from apiv1.errors import render
from gateway.errors import GatewayError
from gateway.logs import RequestLog
from gateway.server import cors, stamps

REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}

_date_line = (0, b"")


def refusal(error: GatewayError, log: RequestLog, origin: bytes | None) -> bytes:
    """In OpenAI's form, announcing the connection's end."""
    rendered = render(error)
    pairs = [(b"connection", b"close"), *rendered.headers, *stamps.of(log), *cors.headers(origin)]
    head = [status_line(rendered.status), date_line(), *(name + b": " + value for name, value in pairs)]
    return b"\r\n".join(head) + b"\r\n\r\n" + rendered.body


def status_line(status: int) -> bytes:
    return b"HTTP/1.1 %d %b" % (status, REASONS.get(status, b"Unknown"))


def date_line() -> bytes:
    """Formatted once a second."""
    global _date_line
    now = int(time.time())
    if _date_line[0] != now:
        _date_line = (now, b"date: " + formatdate(now, usegmt=True).encode())
    return _date_line[1]
