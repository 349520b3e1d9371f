"""What the server says of itself: /, /health, /livez, /readyz. No key needed, nothing secret in them."""

from __future__ import annotations

import time

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe

from gateway.server import readiness

NAME = "Counterfoil"
NO_STORE = {"Cache-Control": "no-store"}


def endpoints() -> dict[str, str]:
    prefix = settings.API_PREFIX.rstrip("/")
    return {
        "chat": f"{prefix}/chat/completions",
        "models": f"{prefix}/models",
        "usage": f"{prefix}/usage",
        "health": "/health",
        "admin": "/admin/",
    }


@csrf_exempt  # so that a POST is told 405
@require_safe
async def index(request: HttpRequest) -> HttpResponse:
    if request.get_preferred_type(["application/json", "text/html"]) == "text/html":
        page = render(request, "index.html", {"name": NAME, "version": settings.VERSION, "endpoints": endpoints()})
    else:
        message = f"{NAME}: an OpenAI-compatible API"
        page = JsonResponse({"message": message, "version": settings.VERSION, "endpoints": endpoints()})
    page.headers["Vary"] = "Accept"
    return page


@csrf_exempt  # so that a POST is told 405
@require_safe
async def health(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "healthy", "timestamp": int(time.time())}, headers=NO_STORE)


@csrf_exempt  # so that a POST is told 405
@require_safe
async def livez(request: HttpRequest) -> JsonResponse:
    """The event loop turns. Nothing else: a restart mends no database."""
    return JsonResponse({"status": "alive"}, headers=NO_STORE)


@csrf_exempt  # so that a POST is told 405
@require_safe
async def readyz(request: HttpRequest) -> JsonResponse:
    found = await readiness.reasons()
    if found:
        return JsonResponse({"status": "not ready", "reasons": found}, status=503, headers=NO_STORE)
    return JsonResponse({"status": "ready", "reasons": []}, headers=NO_STORE)
