"""Pages that try a provider or a deployment out, as the request path would call it, past keys and books."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from unfold.widgets import UnfoldAdminTextareaWidget

from gateway.catalogue.models import Deployment, Provider
from gateway.errors import GatewayError
from gateway.upstreams import registry
from gateway.upstreams.base import Face, Target
from gateway.upstreams.listing import list_models

LONGEST_SECONDS = 60.0
PROMPT = "Say hello in one short sentence."
# Protocols whose one provider lists its models; many servers that speak the others do not.
LISTING = (Provider.Protocol.AZURE, Provider.Protocol.GEMINI)


@dataclass(slots=True)
class Probe:
    """How it went, for the page: one line, what was answered, and what the operator's log says of it."""

    ok: bool
    text: str
    answer: str = ""
    details: list[str] = field(default_factory=list)
    milliseconds: int = 0


class PromptForm(forms.Form):
    prompt = forms.CharField(
        initial=PROMPT, max_length=2000, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}), label="Prompt"
    )


# ---- pages ----


def provider_page(request: HttpRequest, pk: int) -> HttpResponse:
    _require(request, "catalogue.change_provider")
    provider = get_object_or_404(Provider, pk=pk)
    probe = _run(lambda: try_provider(provider)) if request.method == "POST" else None
    context = {"object": provider, "probe": probe, "opts": Provider._meta, "title": "Test connection"}
    return render(request, "console/probe.html", admin.site.each_context(request) | context)


def deployment_page(request: HttpRequest, pk: int) -> HttpResponse:
    _require(request, "catalogue.change_deployment")
    deployment = get_object_or_404(Deployment.objects.select_related("provider", "model"), pk=pk)
    form = PromptForm(request.POST or None)
    probe = None
    if request.method == "POST" and form.is_valid():
        probe = _run(lambda: try_deployment(deployment, form.cleaned_data["prompt"]))
    title = "Send a test request"
    context = {"object": deployment, "probe": probe, "form": form, "opts": Deployment._meta, "title": title}
    return render(request, "console/probe.html", admin.site.each_context(request) | context)


def _require(request: HttpRequest, permission: str) -> None:
    if not request.user.has_perm(permission):
        raise PermissionDenied


# ---- what they try ----


async def try_provider(provider: Provider) -> Probe:
    """Whether the address answers and takes the credential; costs nothing at the provider."""
    if provider.protocol == Provider.Protocol.ECHO:
        return Probe(True, "Echo answers by itself: there is nothing to connect to.")
    listing = await list_models(_target(provider))
    if listing.status in (401, 403):
        return Probe(False, f"It was reached, but refused the credential (status {listing.status}).", listing.body)
    if listing.status == 404 and provider.protocol in LISTING:
        return Probe(False, "It was reached, but not at this base URL and API version (status 404).", listing.body)
    if listing.status in (404, 405):
        return Probe(True, f"It was reached, but does not list its models (status {listing.status}).", listing.body)
    if listing.status != 200 or not listing.models:
        return Probe(
            False, f"It was reached, but its answer is no list of models (status {listing.status}).", listing.body
        )
    count = len(listing.models)
    return Probe(True, f"It answers and lists {count} model{'s' * (count != 1)}.", "\n".join(listing.models[:50]))


async def try_deployment(deployment: Deployment, prompt: str) -> Probe:
    """A small real request. The provider may bill it; it is in nobody's books."""
    target = _target(deployment.provider, deployment)
    request = {"model": target.upstream_model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 64}
    face = Face(id="chatcmpl-test", created=int(time.time()), model=deployment.model.public_id)
    answer = await registry.adapter_for(target.protocol).complete(target, request, face)
    said = msgspec.json.decode(answer.body)["choices"][0]["message"]
    usage = answer.usage
    text = f"It answered. {usage.total} tokens{' (our own count)' if usage.estimated else ''}."
    return Probe(True, text, said.get("content") or said.get("reasoning") or "(an empty answer)")


def _target(provider: Provider, deployment: Deployment | None = None) -> Target:
    return Target(
        deployment_id=deployment.pk if deployment else 0,
        provider_id=provider.pk,
        protocol=provider.protocol,
        base_url=provider.base_url,
        credential=provider.credential,
        upstream_model=deployment.upstream_model if deployment else "",
        connect_timeout_s=provider.connect_timeout_s,
        read_timeout_s=min(provider.read_timeout_s, LONGEST_SECONDS),
        api_version=provider.api_version,
    )


def _run(probe: Callable[[], Coroutine[Any, Any, Probe]]) -> Probe:
    """On a loop of its own in this view's thread, so that the server's loop and its pools are left alone."""
    began = time.perf_counter()
    with _operators_log() as details:
        try:
            result = asyncio.run(_bounded(probe))
        except TimeoutError:
            result = Probe(False, f"No answer within {LONGEST_SECONDS:.0f} seconds.")
        except GatewayError as exc:
            result = Probe(False, exc.message)
    result.details, result.milliseconds = details, round((time.perf_counter() - began) * 1000)
    return result


async def _bounded(probe: Callable[[], Coroutine[Any, Any, Probe]]) -> Probe:
    try:
        async with asyncio.timeout(LONGEST_SECONDS):
            return await probe()
    finally:
        await registry.close_all()


@contextmanager
def _operators_log() -> Iterator[list[str]]:
    """What upstreams write into the operator's log from this thread: causes that clients never see."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == threading.get_ident():
                lines.append(record.getMessage())

    logger, collector = logging.getLogger("gateway.upstreams"), Collector()
    logger.addHandler(collector)
    try:
        yield lines
    finally:
        logger.removeHandler(collector)
