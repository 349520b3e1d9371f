"""Which answers are kept, and for how long. Never what they say: not even an admin reads them here."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter
from unfold.decorators import display

from gateway.ledger.admin.facts import FactAdmin
from gateway.replies.models import KeptReply


@admin.register(KeptReply)
class KeptReplyAdmin(FactAdmin):
    list_display = ["request_id", "tenant", "state_label", "stream", "size_shown", "created_at", "expires_at"]
    list_filter = [("tenant", AutocompleteSelectFilter), ("state", ChoicesDropdownFilter)]
    list_select_related = ["tenant"]
    ordering = ["-created_at", "-id"]
    actions = ["delete_selected"]  # Django's own, which asks first: the next request with that key runs anew
    fieldsets = [
        (
            None,
            {
                "fields": [
                    ("tenant", "request_id"),
                    ("state_label", "stream", "size_shown"),
                    ("created_at", "expires_at"),
                ]
            },
        )
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[KeptReply]:
        queryset: QuerySet[KeptReply] = super().get_queryset(request)
        return queryset.defer("content")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.has_perm("replies.delete_keptreply"))

    @display(
        description="state",
        ordering="state",
        label={"kept": "success", "being answered": "info", "too large to keep": "warning"},
    )
    def state_label(self, reply: KeptReply) -> str:
        return reply.get_state_display()

    @display(description="size")
    def size_shown(self, reply: KeptReply) -> str:
        return filesizeformat(reply.size) if reply.size else ""
