"""For requests that Django's stock handler serves: the request's id and log line, and the API's envelope.

First in MIDDLEWARE, so that it sees every answer, those of Django's own error handling included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponse, HttpResponsePermanentRedirect
from django.http.response import HttpResponseBase
from django.middleware.common import CommonMiddleware
from django.utils.decorators import sync_and_async_middleware

from apiv1.errors import respond, wrong_method
from gateway.errors import CLIENT_LEFT, GatewayError
from gateway.logs import RequestLog, answering
from gateway.server import envelope, stamps
from gateway.server.inbound import LONGEST_ID

PROBES = ("/livez", "/readyz", "/health")


class Common(CommonMiddleware):
    """Django's, which refuses requests for hosts that are not ours; but load balancers, Docker and Kubernetes ask
    how we are by address."""

    def process_request(self, request: HttpRequest) -> HttpResponsePermanentRedirect | None:
        return None if request.path in PROBES else super().process_request(request)


@sync_and_async_middleware
def boundary(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    if iscoroutinefunction(get_response):
        return _asynchronous(get_response)

    def middleware(request: HttpRequest) -> HttpResponseBase:
        log = _begin(request)
        return _end(request, get_response(request), log)

    return middleware


def _asynchronous(
    get_response: Callable[[HttpRequest], Awaitable[HttpResponseBase]],
) -> Callable[[HttpRequest], Awaitable[HttpResponseBase]]:
    async def middleware(request: HttpRequest) -> HttpResponseBase:
        log = _begin(request)
        answering.set(log)
        try:
            response = await get_response(request)
        except asyncio.CancelledError:
            log.write(CLIENT_LEFT)
            raise
        return _end(request, response, log)

    return middleware


def _begin(request: HttpRequest) -> RequestLog:
    log = RequestLog(request.method or "", request.path)
    log.client_request_id = request.headers.get("x-client-request-id", "")[:LONGEST_ID]
    request.counterfoil = log  # type: ignore[attr-defined]
    return log


def _end(request: HttpRequest, response: HttpResponseBase, log: RequestLog) -> HttpResponseBase:
    page = not response.headers.get("Content-Type", "").startswith("application/json")
    if page and response.status_code >= 400 and not _for_people(request):
        response = _enveloped(request, response)
    for name, value in stamps.of(log):
        response.headers[name.decode()] = value.decode()
    log.write(response.status_code)
    return response


def _for_people(request: HttpRequest) -> bool:
    """Whether an error may be a page: in the admin, and elsewhere outside the API for browsers."""
    if envelope.under_api(request.path):
        return False
    return request.path.startswith(envelope.PAGES) or "text/html" in request.headers.get("Accept", "")


def _enveloped(request: HttpRequest, page: HttpResponseBase) -> HttpResponse:
    """Django's or Ninja's page as OpenAI's error object, with the headers that mattered (CORS, Allow)."""
    status = page.status_code
    allowed = [name.strip() for name in page.headers.get("Allow", "").split(",") if name.strip()]
    if status == 405 and allowed:
        error: GatewayError = wrong_method(request, allowed)
    else:
        error = envelope.for_status(status, request.method or "", request.path)
    response = respond(request, error)
    for name, value in page.headers.items():
        if name.lower() not in ("content-type", "content-length"):
            response.headers.setdefault(name, value)
    response.cookies = page.cookies
    return response
