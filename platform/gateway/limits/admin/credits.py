"""Prepaid credit: top-ups of a limit of spend in total. What was used is not taken away again."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import F, QuerySet, Sum
from django.http import HttpRequest
from django.utils import timezone
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import display

from gateway.limits.admin.forms import CreditForm
from gateway.limits.models import Credit, LimitCounter
from gateway.limits.wording import quantity
from tenants.admin.history import KeptAdmin


@admin.register(Credit)
class CreditAdmin(KeptAdmin):
    form = CreditForm
    list_display = ["whom", "topped_up", "state", "expires_at", "unused", "note", "created_at"]
    list_filter = [("rule", AutocompleteSelectFilter)]
    search_fields = ["rule__tenant__slug", "rule__key__name", "note"]
    list_select_related = ["rule__tenant", "rule__key", "rule__model", "rule__plan"]
    ordering = ["-id"]
    autocomplete_fields = ["rule"]
    fieldsets = [(None, {"fields": ["whom", ("topped_up", "state"), "expires_at", "note", "created_at"]})]
    add_fieldsets = [(None, {"fields": ["rule", "amount", "expires_at", "note"]})]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Credit]:
        queryset: QuerySet[Credit] = super().get_queryset(request)
        return queryset.select_related(*self.list_select_related)

    def get_fieldsets(self, request: HttpRequest, obj: Credit | None = None) -> Any:
        return self.fieldsets if obj else self.add_fieldsets

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        if obj is not None:  # the amount was booked: what can change is its end, and what is said of it
            kwargs["form"] = type("StandingCreditForm", (CreditForm,), {"amount": None, "clean_amount": None})
        return super().get_form(request, obj, change, **kwargs)

    def get_readonly_fields(self, request: HttpRequest, obj: Credit | None = None) -> list[str]:
        if obj is None:
            return []
        closed = ["expires_at"] if obj.closed_at else []
        return ["whom", "topped_up", "state", "created_at", *closed]

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        used = isinstance(obj, Credit) and bool(self.why_kept(obj))
        return not used and bool(super().has_delete_permission(request, obj))

    def why_kept(self, obj: Credit) -> str:
        """Used is what the other top-ups and the limit's own amount do not cover."""
        if obj.closed_at is not None:
            return f"This credit has expired and is part of the account: {obj.rule} keeps it."
        now, rule = timezone.now(), obj.rule
        others = rule.credits.exclude(pk=obj.pk)
        covered = rule.amount_at(now) + sum(
            c.amount - c.expired_amount for c in others if c.closed_at or c.expires_at is None or now < c.expires_at
        )
        taken = LimitCounter.objects.filter(rule_id=rule.pk).aggregate(all=Sum(F("used") + F("held")))["all"]
        if taken is not None and taken > covered:
            return "Some of this credit is used, so it cannot be removed. Let it expire: set an earlier end."
        return ""

    @display(description="whom")
    def whom(self, credit: Credit) -> str:
        return str(credit.rule.subject)

    @display(description="amount", ordering="amount")
    def topped_up(self, credit: Credit) -> str:
        return quantity(credit.rule, credit.amount)

    @display(description="state", label={"live": "success", "expired": "warning"})
    def state(self, credit: Credit) -> str:
        over = credit.closed_at is not None or (credit.expires_at is not None and credit.expires_at <= timezone.now())
        return "expired" if over else "live"

    @display(description="unused when it expired")
    def unused(self, credit: Credit) -> str:
        return quantity(credit.rule, credit.expired_amount) if credit.closed_at else ""
