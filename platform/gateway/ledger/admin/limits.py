"""What limits have counted and refused: read, never written."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import display

from gateway.identifiers import parse_request_id
from gateway.ledger.admin.facts import FactAdmin, unbroken
from gateway.ledger.admin.filters import ModelFilter
from gateway.limits.models import LimitCounter, LimitRule, Refusal
from gateway.limits.refusals_log import NO_RULE
from gateway.limits.wording import kind_of, quantity


@admin.register(LimitCounter)
class LimitCounterAdmin(FactAdmin):
    list_display = ["rule", "owner", "window_start", "window_end", "process_row", "used_now", "held_now"]
    list_display_links = None
    search_fields = ["rule_id"]
    search_help_text = "A limit's number"
    ordering = ["-id"]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[LimitCounter], search_term: str
    ) -> tuple[QuerySet[LimitCounter], bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        return (queryset.filter(rule_id=int(term)) if term.isdecimal() else queryset.none()), False

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """With the rules of this page, in one query; a counter outlives its rule."""
        changelist = super().get_changelist_instance(request)
        related = ("plan", "tenant", "key", "model")
        rules = LimitRule.objects.select_related(*related).in_bulk({c.rule_id for c in changelist.result_list})
        for counter in changelist.result_list:
            counter.its_rule = rules.get(counter.rule_id)
        return changelist

    @display(description="limit")
    def rule(self, counter: Any) -> str:
        if counter.its_rule is None:
            return f"removed ({counter.rule_id})"
        url = reverse("admin:limits_limitrule_change", args=[counter.rule_id])
        text = f"{counter.its_rule.subject}: {kind_of(counter.its_rule)}"
        return format_html('<a class="cf-link" href="{}">{}</a>', url, text)

    @display(description="tenant of the plan")
    def owner(self, counter: LimitCounter) -> str:
        return str(counter.owner_id) if counter.owner_id else ""

    @display(description="row")
    def process_row(self, counter: LimitCounter) -> str:
        """A counter that many processes want has a row for each: their sum counts."""
        return f"process {counter.shard}" if counter.shard else ""

    @display(description="used")
    def used_now(self, counter: Any) -> str:
        if counter.slots is not None:
            return "sliding"
        return quantity(counter.its_rule, counter.used) if counter.its_rule else str(counter.used)

    @display(description="held")
    def held_now(self, counter: Any) -> str:
        return quantity(counter.its_rule, counter.held) if counter.its_rule else str(counter.held)


@admin.register(Refusal)
class RefusalAdmin(FactAdmin):
    list_display = ["short_id", "when", "tenant", "key_name", "model", "limit", "tokens", "stands_for", "outcome"]
    list_display_links = None
    list_filter = [("tenant", AutocompleteSelectFilter), ("key", AutocompleteSelectFilter), ModelFilter]
    search_fields = ["request_id"]
    search_help_text = "Request id: x-request-id or UUID"
    list_select_related = ["tenant", "key"]
    ordering = ["-request_id"]
    fieldsets = [
        (None, {"fields": ["short_id", "when", ("tenant", "key"), "model", "tokens", ("stands_for", "outcome")]})
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Refusal]:
        rule = LimitRule.objects.filter(pk=OuterRef("rule_id")).order_by()
        names = {name: Subquery(rule.values(name)[:1]) for name in ("metric", "per", "tokens")}
        queryset: QuerySet[Refusal] = super().get_queryset(request)
        return queryset.annotate(**{f"rule_{name}": value for name, value in names.items()})

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Refusal], search_term: str
    ) -> tuple[QuerySet[Refusal], bool]:
        if not search_term.strip():
            return queryset, False
        request_id = parse_request_id(search_term)
        return (queryset.filter(request_id=request_id) if request_id else queryset.none()), False

    @display(description="request")
    def short_id(self, refusal: Refusal) -> SafeString:
        url = f"{reverse('admin:explain')}?id={refusal.request_id}"
        return format_html('<a class="cf-link cf-nowrap" href="{}">…{}</a>', url, str(refusal.request_id)[-12:])

    @display(description="at (UTC)")
    def when(self, refusal: Refusal) -> SafeString:
        return unbroken(f"{refusal.at:%Y-%m-%d %H:%M:%S}")

    @display(description="key")
    def key_name(self, refusal: Refusal) -> str:
        return refusal.key.name

    @display(description="limit")
    def limit(self, refusal: Any) -> str:
        if refusal.rule_id == NO_RULE:
            return f"none: {refusal.reason}"
        if refusal.rule_metric is None:
            return f"removed ({refusal.rule_id})"
        kind = kind_of(LimitRule(metric=refusal.rule_metric, per=refusal.rule_per, tokens=refusal.rule_tokens))
        return format_html(
            '<a class="cf-link" href="{}">{}</a>{}',
            reverse("admin:limits_limitrule_change", args=[refusal.rule_id]),
            kind,
            f": {refusal.reason}" if refusal.reason else "",
        )

    @display(description="tokens in + out")
    def tokens(self, refusal: Refusal) -> str:
        return f"{refusal.input_tokens} + {refusal.output_tokens}"

    @display(description="outcome", label={"refused": "danger", "lowered": "warning"})
    def outcome(self, refusal: Refusal) -> tuple[str, str]:
        if refusal.lowered_to is None:
            return "refused", "refused"
        return "lowered", f"lowered to {refusal.lowered_to}"
