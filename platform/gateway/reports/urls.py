"""Mounted by gateway.urls: `api_urls` under /api/, `admin_urls` under /admin/reports/ (before the admin)."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path, re_path
from drf_spectacular.views import SpectacularAPIView

from gateway import __version__
from gateway.reports import api, views

SCHEMA = {
    "TITLE": "Counterfoil, finance",
    "DESCRIPTION": "What was used and what it cost. Amounts are decimal strings; days are the tenant's own.",
    "VERSION": __version__,
    "SERVE_INCLUDE_SCHEMA": False,
}

api_urls = (
    [
        path("usage/", api.UsageView.as_view(), name="usage"),
        path("usage/export/", api.UsageExportView.as_view(), name="usage-export"),
        path("schema/", SpectacularAPIView.as_view(custom_settings=SCHEMA), name="schema"),
        re_path("", api.UnknownView.as_view()),
    ],
    "finance-api",
)
admin_urls = ([path("export/", admin.site.admin_view(views.export), name="export")], "reports")
