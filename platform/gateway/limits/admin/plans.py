"""Plans: rules that tenants share, and who has which."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from unfold.admin import StackedInline, TabularInline
from unfold.decorators import display

from gateway.limits.admin.forms import PlanRuleForm
from gateway.limits.models import LimitRule, Plan, PlanMembership
from tenants.admin.history import HistoryAdmin


class RuleInline(StackedInline):
    model = LimitRule
    form = PlanRuleForm
    fields = [("metric", "per", "tokens"), ("amount", "currency", "model"), ("mode", "hold", "on_shortage")]
    autocomplete_fields = ["model"]
    extra = 0
    show_change_link = True
    verbose_name_plural = (
        "limits: each tenant of the plan has them for itself; its own limit of the same kind goes first"
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[LimitRule]:
        queryset: QuerySet[LimitRule] = super().get_queryset(request)
        return queryset.select_related("plan", "tenant", "key", "model")


class MemberInline(TabularInline):
    model = PlanMembership
    fields = ["tenant"]
    autocomplete_fields = ["tenant"]
    extra = 0
    verbose_name_plural = "tenants on this plan"


@admin.register(Plan)
class PlanAdmin(HistoryAdmin):
    list_display = ["slug", "name", "rule_count", "tenant_count"]
    search_fields = ["slug", "name"]
    ordering = ["slug"]
    prepopulated_fields = {"slug": ["name"]}
    fieldsets = [(None, {"fields": [("name", "slug")]})]
    inlines = [RuleInline, MemberInline]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Plan]:
        counts = {"rules_here": Count("rules", distinct=True), "members": Count("memberships", distinct=True)}
        queryset: QuerySet[Plan] = super().get_queryset(request).annotate(**counts)
        return queryset

    def get_readonly_fields(self, request: HttpRequest, obj: Plan | None = None) -> list[str]:
        return ["slug"] if obj else []  # `apply` files name it

    def get_prepopulated_fields(self, request: HttpRequest, obj: Plan | None = None) -> dict[str, Any]:
        return {} if obj else self.prepopulated_fields

    def why_kept(self, obj: Plan) -> str:
        if obj.memberships.exists():
            return f"{obj} has tenants: it cannot be removed. Give them another plan or none first."
        return ""

    @display(description="limits", ordering="rules_here")
    def rule_count(self, plan: Any) -> int:
        return int(plan.rules_here)

    @display(description="tenants", ordering="members")
    def tenant_count(self, plan: Any) -> int:
        return int(plan.members)
