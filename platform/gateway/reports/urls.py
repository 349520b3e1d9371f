"""Mounted by gateway.urls: `api_urls` under /api/, `admin_urls` under /admin/reports/ (before the admin)."""

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
        re_path("", api.UnknownView.as_view()),
    ],
    "finance-api",
)
admin_urls = ([path("export/", admin.site.admin_view(views.export), name="export")], "reports")
