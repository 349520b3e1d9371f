"""Tenants in the admin."""

from __future__ import annotations

import zoneinfo
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget

from tenants.admin.fields import LinesField, limits_of
from tenants.admin.history import HistoryAdmin
from tenants.currencies import MINOR_UNITS
from tenants.models import AMBIGUOUS_ZONES, APIKey, Tenant


class TenantForm(forms.ModelForm[Tenant]):
    allowed_models = LinesField(
        label="Allowed models",
        required=False,
        help_text="One model id or pattern a line, such as acme-*. A single * is every model; empty is none.",
    )
    timezone = forms.ChoiceField(
        label="Time zone",
        widget=UnfoldAdminSelectWidget,
        choices=[(name, name) for name in sorted(zoneinfo.available_timezones() - AMBIGUOUS_ZONES)],
        initial="UTC",
        help_text="Days and months of reports are those of this zone.",
    )
    currency = forms.ChoiceField(
        widget=UnfoldAdminSelectWidget,
        choices=[(code, code) for code in sorted(MINOR_UNITS)],
        initial="USD",
        help_text="What the tenant is charged in. It needs prices in this currency.",
    )

    class Meta:
        model = Tenant
        fields = ["slug", "name", "status", "timezone", "currency", "billing_contact", "allowed_models"]


@admin.register(Tenant)
class TenantAdmin(HistoryAdmin):
    form = TenantForm
    list_display = ["slug", "name", "status_label", "currency", "timezone", "live_keys", "created_at"]
    list_filter = ["status", "currency"]
    ordering = ["slug"]
    search_fields = ["slug", "name", "billing_contact"]
    readonly_fields = ["keys_link", "limits_link", "created_at"]
    prepopulated_fields = {"slug": ["name"]}
    fieldsets = [
        (None, {"fields": [("name", "slug"), ("status", "billing_contact")]}),
        ("Money and time", {"fields": [("currency", "timezone")]}),
        ("Access", {"fields": ["allowed_models", "keys_link"]}),
        ("Limits", {"fields": ["limits_link"]}),
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Tenant]:
        # A subquery is worked out for the rows of one page; a join would group every key there is.
        active = APIKey.objects.filter(tenant=OuterRef("pk"), status=APIKey.Status.ACTIVE).order_by()
        count = active.values("tenant").annotate(n=Count("pk")).values("n")
        queryset: QuerySet[Tenant] = super().get_queryset(request)
        return queryset.annotate(active_keys=Subquery(count))

    def get_readonly_fields(self, request: HttpRequest, obj: Tenant | None = None) -> list[str]:
        # The slug is in exports, scripts and `apply` files: it does not change under them.
        return [*self.readonly_fields, "slug"] if obj else self.readonly_fields

    def get_prepopulated_fields(self, request: HttpRequest, obj: Tenant | None = None) -> dict[str, Any]:
        return {} if obj else self.prepopulated_fields

    @display(
        description="status",
        ordering="status",
        label={"active": "success", "suspended": "warning", "closed": "danger"},
    )
    def status_label(self, tenant: Tenant) -> str:
        return tenant.status

    @display(description="active keys")
    def live_keys(self, tenant: Any) -> int:
        return int(tenant.active_keys or 0)

    @display(description="API keys")
    def keys_link(self, tenant: Tenant) -> str:
        if tenant.pk is None:
            return "After saving, issue the first key under API keys."
        url = reverse("admin:tenants_apikey_changelist")
        add = reverse("admin:tenants_apikey_add")
        return format_html(
            '<a class="text-primary-600" href="{}?tenant__id__exact={}">Its keys</a> · '
            '<a class="text-primary-600" href="{}?tenant={}">Issue a key</a>',
            url,
            tenant.pk,
            add,
            tenant.pk,
        )

    @display(description="limits")
    def limits_link(self, tenant: Tenant) -> str:
        if tenant.pk is None:
            return "After saving, set limits or give it a plan under Limits."
        membership: Any = getattr(tenant, "plan_membership", None)  # of a layer above
        plan = f"Plan: {membership.plan}" if membership is not None else "No plan"
        return format_html("{} · {}", plan, limits_of("tenant", tenant.pk))

    def why_kept(self, obj: Tenant) -> str:
        if obj.keys.exists():
            return f"{obj} has API keys, and usage is booked on them: it cannot be deleted. Set its status to closed."
        if obj.prices.exists():
            return f"{obj} has prices of its own: it cannot be deleted. Set its status to closed."
        return ""
