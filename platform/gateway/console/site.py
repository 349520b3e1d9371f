"""The admin's site: Unfold's, with a dashboard as its first page and the pages that span several apps."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from unfold.sites import UnfoldAdminSite


class ConsoleSite(UnfoldAdminSite):
    """`default_site` of `AdminConfig`. Imported before the models are, so its pages are imported on use."""

    site_title = site_header = "Counterfoil"
    index_title = "Today"
    index_template = "console/dashboard.html"

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        from gateway.console.dashboard import today

        context = today(request) | (extra_context or {})
        return super().index(request, context)  # type: ignore[no-any-return]

    def extra_urls(self) -> list[URLPattern]:
        from gateway.console import explain, live, probes

        return [
            path("explain/", self.admin_view(explain.explain_page), name="explain"),
            path("simulate/", self.admin_view(explain.simulate_page), name="simulate"),
            path("live/", self.admin_view(live.page), name="live_feed"),
            path("catalogue/provider/<int:pk>/test/", self.admin_view(probes.provider_page), name="test_provider"),
            path(
                "catalogue/deployment/<int:pk>/test/",
                self.admin_view(probes.deployment_page),
                name="test_deployment",
            ),
        ]
