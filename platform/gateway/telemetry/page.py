"""GET /metrics on the main port: for whoever has METRICS_TOKEN. Without that setting the page does not exist."""

from __future__ import annotations

import asyncio

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.utils.crypto import constant_time_compare
from django.views.decorators.csrf import csrf_exempt

from gateway.telemetry import exposition

READING = ("GET", "HEAD")


@csrf_exempt  # so that a POST is told 401 or 405
async def metrics(request: HttpRequest) -> HttpResponse:
    if not settings.METRICS_TOKEN:
        raise Http404
    if not may_read(request.headers.get("Authorization", "")):
        return _unauthorized()
    if request.method not in READING:
        return HttpResponseNotAllowed(READING)
    accept, encodings = request.headers.get("Accept", ""), request.headers.get("Accept-Encoding", "")
    page = await asyncio.to_thread(exposition.page, accept, encodings)  # reads files, for some milliseconds
    headers = {"Cache-Control": "no-store", "Vary": "Accept, Accept-Encoding"}
    if page.gzipped:
        headers["Content-Encoding"] = "gzip"
    return HttpResponse(page.body, content_type=page.content_type, headers=headers)


def may_read(authorization: str) -> bool:
    scheme, _, token = authorization.partition(" ")
    return constant_time_compare(token.strip(), settings.METRICS_TOKEN) and scheme.lower() == "bearer"


def _unauthorized() -> JsonResponse:
    """In OpenAI's form, as everything here that is no page for people."""
    error = {
        "message": "Incorrect metrics token provided. API keys are of no use here.",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_metrics_token",
    }
    return JsonResponse({"error": error}, status=401, headers={"WWW-Authenticate": 'Bearer realm="metrics"'})
