"""What a test asks for in its body: {"do": NAME, …}. Served by the lean handler and, under /stock/, by Django's."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from apiv1.sse import StreamBroken
from gateway.errors import RateLimited
from gateway.server import pages

seen: Counter[str] = Counter()


async def act(request: HttpRequest) -> HttpResponseBase:
    wanted = json.loads(request.body or b"{}")
    seen["started"] += 1
    if keep := wanted.get("keep"):
        await keep_alive(request, keep, wanted.get("before", 0))
    match wanted.get("do"):
        case "raise":
            raise ValueError("hunter2 is the password")
        case "refuse":
            raise RateLimited("Slow down.", headers={"retry-after": "7"})
        case "wait":
            return await wait()
        case "hang":
            time.sleep(3600)
        case "stream" | "break" | "fail" | "silent" | "flood":
            return StreamingHttpResponse(stream(wanted), content_type="text/event-stream; charset=utf-8")
    return JsonResponse({"length": len(request.body), "pad": "x" * wanted.get("pad", 0)})


async def keep_alive(request: HttpRequest, kind: str, before: float) -> None:
    """As the chat endpoint does; `before`: seconds of silence before anything is known."""
    known = {"x-ratelimit-limit-requests": "7"}
    if (silence := getattr(request, "keep_alive", None)) is not None:
        silence.begin(stream=kind == "stream", headers=lambda: known)
    seen["kept"] += 1
    try:
        if before:
            await asyncio.sleep(before)
    except asyncio.CancelledError:
        seen["cancelled"] += 1
        raise


async def wait() -> HttpResponse:
    seen["waiting"] += 1
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        seen["cancelled"] += 1
        raise
    return HttpResponse()


async def stream(wanted: dict[str, Any]) -> AsyncIterator[bytes]:
    try:
        for number in range(wanted.get("events", 3)):
            seen["events"] += 1
            yield b"data: %d%b\n\n" % (number, b"x" * wanted.get("pad", 0))
            await asyncio.sleep(wanted.get("pause", 0))
        match wanted["do"]:
            case "silent":
                await asyncio.sleep(3600)
            case "break":
                yield b'data: {"error":{}}\n\n'
                raise StreamBroken
            case "fail":
                raise ValueError("hunter2 is the password")
        yield b"data: [DONE]\n\n"
    except (asyncio.CancelledError, GeneratorExit):
        seen["cancelled"] += 1
        raise


act.csrf_exempt = True  # type: ignore[attr-defined]


async def state(request: HttpRequest) -> JsonResponse:
    process = {"pid": os.getpid(), "rss_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    return JsonResponse({**seen, **process, "max_tokens": settings.MAX_TOKENS})


async def headers(request: HttpRequest) -> JsonResponse:
    return JsonResponse(dict(request.headers))


@csrf_exempt
def form(request: HttpRequest) -> JsonResponse:
    files = {name: request.FILES[name].read().decode() for name in request.FILES}  # type: ignore[union-attr]
    return JsonResponse({"fields": dict(request.POST.items()), "files": files})


def forbidden(request: HttpRequest) -> HttpResponse:
    return HttpResponse("<p>no</p>", status=int(request.GET.get("status", "403")))


urlpatterns = [
    path("v1/chat/completions", act),
    path("v1/state", state),
    path("v1/headers", headers),
    path("v1/page", forbidden),
    path("v1/stock", act),
    path("stock/act", act),
    path("stock/form", form),
    path("health", pages.health),
    path("livez", pages.livez),
    path("readyz", pages.readyz),
]
