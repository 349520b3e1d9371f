"""Mounted by gateway.urls: `api_urls` under /api/, `admin_urls` under /admin/reports/ (before the admin).

`unknown` answers the rest of /api/. It stands apart, since API_PREFIX may lie there too (/api/v1).
"""

from __future__ import annotations

from django.contrib import admin
from django.urls import path, re_path
from drf_spectacular.views import SpectacularAPIView

from gateway.reports import api, views

api_urls = (
    [
        path("usage/", api.UsageView.as_view(), name="usage"),
        path("usage/export/", api.UsageExportView.as_view(), name="usage-export"),
        path("schema/", SpectacularAPIView.as_view(), name="schema"),
    ],
    "finance-api",
)
unknown = re_path("^api/", api.UnknownView.as_view())
admin_urls = ([path("export/", admin.site.admin_view(views.export), name="export")], "reports")
