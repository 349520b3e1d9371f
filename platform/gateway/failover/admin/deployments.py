"""The catalogue's page of deployments, with each one's health; the catalogue itself knows nothing of it."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display

from gateway.catalogue.admin.models import DeploymentAdmin
from gateway.catalogue.models import Deployment
from gateway.failover.standings import next_probe, state_of

admin.site.unregister(Deployment)


@admin.register(Deployment)
class DeploymentWithHealthAdmin(DeploymentAdmin):
    list_display = [*DeploymentAdmin.list_display, "health"]
    list_select_related = [*DeploymentAdmin.list_select_related, "circuit"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Deployment]:
        return super().get_queryset(request).select_related(*self.list_select_related)

    def get_readonly_fields(self, request: HttpRequest, obj: Deployment | None = None) -> list[str]:
        return [*super().get_readonly_fields(request, obj), "health"]

    def get_fieldsets(self, request: HttpRequest, obj: Deployment | None = None) -> Any:
        """Its health is beside the interval of active probes, once there is a deployment."""
        found = super().get_fieldsets(request, obj)
        if obj is None:
            return found
        return [
            (title, {**facts, "fields": ["health", *facts["fields"]]} if title == "Health" else facts)
            for title, facts in found
        ]

    @display(description="health")
    def health(self, deployment: Any) -> SafeString:
        circuit = getattr(deployment, "circuit", None)
        url, again = reverse("admin:failover_deploymenthealth_change", args=[deployment.pk]), next_probe(circuit)
        text = f"{state_of(circuit).label}{f', tried again: {again}' if again else ''}"
        return format_html('<a class="cf-link" href="{}">{}</a>', url, text)
