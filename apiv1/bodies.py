"""What clients send: the JSON body as bytes, its type and size checked but not its content; texts of their own."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest

from apiv1.errors import body_too_large
from gateway.errors import InvalidRequest

JSON = "application/json"


def json_body(request: HttpRequest) -> bytes:
    """Raises InvalidRequest for another content type, BodyTooLarge past MAX_BODY_BYTES.

    No content type at all is taken for JSON, as is one with parameters (`; charset=utf-8`).
    """
    sent: str = request.headers.get("content-type") or JSON
    if sent != JSON and sent.partition(";")[0].strip().lower() != JSON:
        raise unsupported(sent)
    body = request.body
    if len(body) > settings.MAX_BODY_BYTES:
        raise body_too_large(len(body))
    return body


def unsupported(sent: str) -> InvalidRequest:
    kind = sent.partition(";")[0].strip().lower()[:100]
    return InvalidRequest(
        f"Unsupported content type: '{kind}'. This API method only accepts '{JSON}' requests, but you specified "
        f"the header 'Content-Type: {sent[:200]}'. Please try again with a supported content type.",
        code="unsupported_content_type",
    )


def printable(text: str, longest: int) -> str:
    """A client's own label, for the books and the log: PostgreSQL's text holds no NUL, a log line no control."""
    text = text[:longest]
    return text if text.isprintable() else "".join(letter if letter.isprintable() else " " for letter in text)
