"""CORS for the API's answers that do not pass django-cors-headers: the lean handler's and refusals.

The same settings rule both. A preflight allows whatever headers the browser asks for: the OpenAI SDK sends a
dozen `x-stainless-*` of its own, which no fixed list keeps up with.
"""

from __future__ import annotations

from django.conf import settings

Pairs = list[tuple[bytes, bytes]]


def headers(origin: bytes | None) -> Pairs:
    """For an answer to a request with this Origin header."""
    if origin is None or not (settings.CORS_ALLOW_ALL_ORIGINS or settings.CORS_ALLOWED_ORIGINS):
        return []
    vary = (b"vary", b"origin")
    if not allowed(origin):
        return [vary]
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", ", ".join(settings.CORS_EXPOSE_HEADERS).encode()),
        vary,
    ]


def preflight(origin: bytes, asked: bytes | None) -> Pairs:
    """For an OPTIONS request; `asked` is its Access-Control-Request-Headers."""
    if not allowed(origin):
        return headers(origin)
    return [
        *headers(origin),
        (b"access-control-allow-methods", b"DELETE, GET, OPTIONS, PATCH, POST, PUT"),
        (b"access-control-allow-headers", asked or b"authorization, content-type, idempotency-key"),
        (b"access-control-max-age", b"86400"),
    ]


def allowed(origin: bytes) -> bool:
    return settings.CORS_ALLOW_ALL_ORIGINS or origin.decode("latin1") in settings.CORS_ALLOWED_ORIGINS
