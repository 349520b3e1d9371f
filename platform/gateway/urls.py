"""Every HTTP route. What is under API_PREFIX answers in OpenAI's form whatever happens (gateway.server)."""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path
from django.views.generic import RedirectView

from apiv1.api import api
from gateway.reports.urls import admin_urls, api_urls, unknown
from gateway.server import pages
from gateway.telemetry.page import metrics


def routes(prefix: str) -> list[URLPattern | URLResolver]:
    """With the API under this prefix, which may lie beside the finance API: /api/v1."""
    return [
        path("", pages.index, name="index"),
        path("health", pages.health, name="health"),
        path("livez", pages.livez, name="livez"),
        path("readyz", pages.readyz, name="readyz"),
        path("metrics", metrics, name="metrics"),
        path("admin", RedirectView.as_view(pattern_name="admin:index")),
        path("admin/reports/", include(admin_urls)),
        path("admin/", admin.site.urls),
        path("api/", include(api_urls)),
        path(f"{prefix}/" if prefix else "", api.urls),
        unknown,  # last: under /api/ may be the API too
    ]


urlpatterns = routes(settings.API_PREFIX.strip("/"))
