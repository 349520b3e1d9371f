"""OpenAI's error object, and the one place where an exception becomes an answer.

`{"error": {"message", "type", "param", "code"}}`, all four keys always there, content type application/json.
Ninja's views come here by `respond`, the server (whose refusals never reach Django) by `render`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import orjson
from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.http import Http404, HttpRequest, HttpResponse
from django.http import UnreadablePostError as ClientLeft
from ninja.errors import AuthenticationError, HttpError, ValidationError

from gateway.errors import (
    BodyTooLarge,
    GatewayError,
    InternalError,
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    MissingApiKey,
    NotFound,
)

log = logging.getLogger(__name__)
JSON = "application/json"
LONGEST_CHAIN = 20  # of exceptions that came of each other


@dataclass(frozen=True, slots=True)
class Rendered:
    """An error as ASGI sends it: names of headers in lower case, the content's type and length among them."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def error_object(exc: GatewayError) -> bytes:
    """The envelope in JSON, on one line."""
    return orjson.dumps({"error": {"message": exc.message, "type": exc.type, "param": exc.param, "code": exc.code}})


def status_of(exc: GatewayError) -> int:
    """Clients of the guide expect 422 for a body of the wrong form, OpenAI's expect 400."""
    return settings.FORMAT_ERROR_STATUS if isinstance(exc, MalformedBody) else exc.status


def render(exc: GatewayError) -> Rendered:
    body = error_object(exc)
    headers = [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(body))]
    headers += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in exc.headers.items()]
    return Rendered(status_of(exc), headers, body)


def respond(request: HttpRequest, exc: Any) -> HttpResponse:
    """Any exception of a view as a response. Ninja's handler for all of them."""
    fault = translated(exc, request)
    let_go(exc)
    known = getattr(request, "counterfoil", None)
    if known is not None:
        known.error_code = fault.code or fault.type
    return HttpResponse(error_object(fault), status=status_of(fault), content_type=JSON, headers=fault.headers)


def let_go(exc: BaseException | None) -> None:
    """Nobody looks where it came from any more.

    A frame on its way may know it by a name, so that the two keep each other, and the request's body with them, until
    Python collects cycles: which a server does seldom, and that of the largest of bodies.
    """
    for _ in range(LONGEST_CHAIN):
        if exc is None:
            break
        exc.with_traceback(None)  # not by assignment, which a frozen dataclass refuses
        exc = exc.__cause__ or exc.__context__


def translated(exc: BaseException, request: HttpRequest | None = None) -> GatewayError:
    """Foreign exceptions in our terms. One that nobody foresaw is logged, and says nothing."""
    if isinstance(exc, GatewayError):
        return exc
    if isinstance(exc, ValidationError):
        return _invalid(exc)
    if isinstance(exc, Http404):
        return invalid_url(request) if request is not None else NotFound("Not found.")
    if isinstance(exc, RequestDataTooBig):
        return body_too_large(int(request.headers["content-length"]) if request is not None else 0)
    if isinstance(exc, ClientLeft):
        return InvalidRequest("The request body ended early.")
    if isinstance(exc, AuthenticationError):
        return MissingApiKey("You didn't provide an API key.")
    if isinstance(exc, HttpError) and exc.status_code < 500:
        return InvalidRequest(exc.message, status=exc.status_code)
    known = getattr(request, "counterfoil", None)
    log.error(
        "unexpected error",
        exc_info=(type(exc), exc, exc.__traceback__),
        extra={"request_id": known.wire_id} if known is not None else None,
    )
    return InternalError()


def invalid_url(request: HttpRequest) -> NotFound:
    return NotFound(f"Invalid URL ({request.method} {request.path[:200]})")


def wrong_method(request: HttpRequest, allowed: list[str]) -> MethodNotAllowed:
    hint = " or ".join(method for method in allowed if method not in ("HEAD", "OPTIONS"))
    return MethodNotAllowed(
        f"Not allowed to {request.method} on {request.path[:200]}. (HINT: Perhaps you meant to use {hint}?)",
        headers={"Allow": ", ".join(allowed)},
    )


def body_too_large(length: int) -> BodyTooLarge:
    """`length` bytes were announced or read."""
    return BodyTooLarge(f"Maximum content size limit ({settings.MAX_BODY_BYTES}) exceeded ({length} bytes read)")


def _invalid(exc: ValidationError) -> GatewayError:
    """What Ninja found wrong with a path or query parameter."""
    first = exc.errors[0] if exc.errors else {}
    places = [str(part) for part in first.get("loc", ()) if part not in ("query", "path", "body")]
    param = ".".join(places) or None
    if first.get("type") == "missing" and param:
        return MalformedBody(
            f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
        )
    return InvalidRequest(f"Invalid '{param}': {first.get('msg', 'not valid')}.", param=param, code="invalid_value")
