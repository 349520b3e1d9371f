"""What Counterfoil says unasked: warnings of limits and how their notices fared, where webhooks go, and drift."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter
from unfold.decorators import display

from gateway.ledger.admin.facts import FactAdmin
from gateway.ledger.models import DriftFinding
from gateway.limits.models import Delivery, LimitWarning, WebhookEndpoint
from gateway.limits.notices import new_secret, shown
from gateway.limits.wording import kind_of_facts
from tenants.admin.history import HistoryAdmin


@admin.register(LimitWarning)
class LimitWarningAdmin(FactAdmin):
    list_display = ["created_at", "tenant", "what", "threshold", "limit_amount", "used_then", "window_start", "told"]
    list_display_links = None
    list_filter = [("tenant", AutocompleteSelectFilter), "threshold"]
    list_select_related = ["tenant"]
    ordering = ["-created_at", "-id"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[LimitWarning]:
        queryset: QuerySet[LimitWarning] = super().get_queryset(request)
        return queryset.prefetch_related("deliveries")

    @display(description="limit")
    def what(self, warning: LimitWarning) -> str:
        return f"{warning.limit.get('subject', '')}: {kind_of_facts(warning.limit)}"

    @display(description="amount")
    def limit_amount(self, warning: LimitWarning) -> str:
        return f"{shown(warning, warning.amount)} {warning.limit.get('currency', '')}".strip()

    @display(description="used then")
    def used_then(self, warning: LimitWarning) -> str:
        return str(shown(warning, warning.used))

    @display(description="told")
    def told(self, warning: LimitWarning) -> str:
        return ", ".join(f"{d.channel} {d.status}" for d in warning.deliveries.all()) or "nobody"


@admin.register(Delivery)
class DeliveryAdmin(FactAdmin):
    list_display = ["created_at", "channel", "address", "state", "attempts", "answer", "sent_at", "next_at"]
    list_display_links = None
    list_filter = [("status", ChoicesDropdownFilter), ("channel", ChoicesDropdownFilter)]
    ordering = ["-created_at", "-id"]
    actions = ["send_again"]

    @display(
        description="status", label={"sent": "success", "pending": "warning", "failed": "danger"}, ordering="status"
    )
    def state(self, delivery: Delivery) -> str:
        return delivery.status

    def has_send_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.has_perm("limits.change_delivery"))

    @admin.action(description="Send again", permissions=["send"])
    def send_again(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        count = queryset.update(status=Delivery.Status.PENDING, attempts=0, next_at=timezone.now())
        self.message_user(request, f"{count} will be sent within half a minute.", messages.SUCCESS)


@admin.register(WebhookEndpoint)
class WebhookEndpointAdmin(HistoryAdmin):
    list_display = ["url", "tenant", "enabled", "created_at"]
    list_filter = ["enabled"]
    search_fields = ["url", "tenant__slug"]
    list_select_related = ["tenant"]
    ordering = ["id"]
    autocomplete_fields = ["tenant"]
    fieldsets = [(None, {"fields": ["tenant", "url", "enabled"]})]
    actions = ["renew_secret"]

    def save_model(self, request: HttpRequest, obj: WebhookEndpoint, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if not change:
            self._tell(request, obj)

    @admin.action(description="New signing secret", permissions=["change"])
    def renew_secret(self, request: HttpRequest, queryset: QuerySet[WebhookEndpoint]) -> None:
        for endpoint in queryset:
            endpoint.secret = new_secret()
            endpoint.save()
            self._tell(request, endpoint)

    def _tell(self, request: HttpRequest, endpoint: WebhookEndpoint) -> None:
        text = f"The signing secret of {endpoint}, shown this once: {endpoint.secret}"
        self.message_user(request, text, messages.SUCCESS)


@admin.register(DriftFinding)
class DriftFindingAdmin(FactAdmin):
    list_display = ["at", "counter", "name", "said", "right", "repaired"]
    list_display_links = None
    list_filter = ["scope"]
    ordering = ["-at", "-id"]
