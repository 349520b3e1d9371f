"""The export in the admin: a form, and the file that it asks for."""

from __future__ import annotations

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_GET

from gateway.billing.rollups import LedgerFromElsewhere
from gateway.reports.access import PERMISSION
from gateway.reports.forms import ExportForm, this_month
from gateway.reports.streaming import csv_response


@require_GET
def export(request: HttpRequest) -> HttpResponseBase:
    """Without parameters the form; with good ones the file; with bad ones the form that says so (400)."""
    if not request.user.has_perm(PERMISSION):
        raise PermissionDenied
    form = ExportForm(request.GET) if request.GET else ExportForm(initial=this_month(timezone.now().date()))
    if form.is_bound and form.is_valid():
        try:
            return csv_response(form.asked, for_excel=form.cleaned_data["excel"])
        except LedgerFromElsewhere as problem:
            messages.error(request, str(problem))
    context = {**admin.site.each_context(request), "title": "Export usage", "form": form}
    return render(request, "admin/reports/export.html", context, status=400 if form.errors else 200)
