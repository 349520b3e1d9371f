"""Providers in the admin. A credential goes in and never comes out."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django import forms
from django.contrib import admin
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponseRedirect
from django.urls import reverse
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminPasswordWidget, UnfoldBooleanSwitchWidget

from gateway.catalogue.models import Provider
from gateway.catalogue.services import check_provider, fits_header
from tenants.admin.history import HistoryAdmin

TIMEOUTS = ("connect_timeout_s", "first_byte_timeout_s", "read_timeout_s", "total_timeout_s")

BASE_URLS = (
    "OpenAI-compatible: https://host/v1. Azure OpenAI: https://NAME.openai.azure.com, or …/openai/v1. "
    "Anthropic: https://api.anthropic.com/v1. Gemini: https://generativelanguage.googleapis.com/v1beta."
)


class ProviderForm(forms.ModelForm[Provider]):
    new_credential = forms.CharField(
        label="New credential",
        required=False,
        strip=True,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}),
        help_text="The provider's API key. Stored encrypted, never shown again. Empty: the stored one stays.",
    )
    remove_credential = forms.BooleanField(
        label="Remove the stored credential", required=False, widget=UnfoldBooleanSwitchWidget
    )

    class Meta:
        model = Provider
        fields = ["name", "protocol", "base_url", "api_version", *TIMEOUTS, "enabled"]
        help_texts = {"base_url": BASE_URLS}

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        secret = data.get("new_credential") or ""
        if not fits_header(secret):
            self.add_error("new_credential", "No HTTP header can hold this: use printable ASCII characters alone.")
        if data.get("new_credential") and data.get("remove_credential"):
            self.add_error("remove_credential", "Either give a new credential or remove the stored one.")
        if "protocol" in data and "base_url" in data:
            check_provider(Provider(protocol=data["protocol"], base_url=data["base_url"]))
            self._check_destination(data)
        return data

    def _check_destination(self, data: dict[str, Any]) -> None:
        """Else whoever may edit a provider could have its credential sent to a host of their own."""
        if self.instance.pk is None or data.get("new_credential") or data.get("remove_credential"):
            return
        stored = Provider.objects.get(pk=self.instance.pk)
        former, new = urlsplit(stored.base_url), urlsplit(data["base_url"])
        if stored.credential and (former.scheme, former.netloc) != (new.scheme, new.netloc):
            self.add_error("new_credential", "The stored one is for another host. Give it again, or remove it.")

    def save(self, commit: bool = True) -> Provider:
        if self.cleaned_data.get("remove_credential"):
            self.instance.credential = ""
        elif self.cleaned_data.get("new_credential"):
            self.instance.credential = self.cleaned_data["new_credential"]
        return super().save(commit)


@admin.register(Provider)
class ProviderAdmin(HistoryAdmin):
    form = ProviderForm
    list_display = ["name", "protocol", "base_url", "has_credential", "deployment_count", "enabled"]
    list_filter = ["protocol", "enabled"]
    search_fields = ["name", "base_url"]
    ordering = ["name"]  # Meta's does not hold for a query that groups
    readonly_fields = ["stored_credential"]
    fieldsets = [
        (None, {"fields": [("name", "protocol"), ("base_url", "api_version"), "enabled"]}),
        ("Credential", {"fields": ["stored_credential", "new_credential", "remove_credential"]}),
        ("Time-outs", {"fields": [TIMEOUTS[:2], TIMEOUTS[2:]]}),
    ]
    add_fieldsets = [
        (None, {"fields": [("name", "protocol"), ("base_url", "api_version"), "new_credential", "enabled"]}),
        ("Time-outs", {"fields": [TIMEOUTS[:2], TIMEOUTS[2:]]}),
    ]
    actions_detail = ["test_connection"]
    actions_row = ["test_connection"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Provider]:
        queryset: QuerySet[Provider] = super().get_queryset(request)
        return queryset.annotate(deployments_here=Count("deployments"))

    @display(description="credential", boolean=True)
    def has_credential(self, provider: Provider) -> bool:
        return bool(provider.credential)

    @display(description="deployments", ordering="deployments_here")
    def deployment_count(self, provider: Any) -> int:
        return int(provider.deployments_here)

    @display(description="stored credential")
    def stored_credential(self, provider: Provider) -> str:
        return "One is stored." if provider.credential else "None."

    @action(description="Test connection", url_path="try", icon="network_check", permissions=["change"])
    def test_connection(self, request: HttpRequest, object_id: str) -> HttpResponseRedirect:
        return HttpResponseRedirect(reverse("admin:test_provider", args=[object_id]))

    def why_kept(self, obj: Provider) -> str:
        if obj.deployments.exists() or obj.prices.exists():
            return f"{obj} has deployments or prices, which usage is booked on: it cannot be deleted. Disable it."
        return ""
