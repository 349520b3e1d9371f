"""Usage records in the admin: read, filtered by index, never counted."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter
from unfold.decorators import display

from gateway.catalogue.models import Provider
from gateway.catalogue.pricing import format_amount
from gateway.identifiers import parse_request_id
from gateway.ledger.admin.attempts import table_of
from gateway.ledger.admin.facts import FactAdmin, money, unbroken
from gateway.ledger.admin.filters import DayFilter, ModelFilter
from gateway.ledger.models import UsageRecord
from gateway.ledger.services import adjustments_of

STATUS_LABELS = {"completed": "success", "failed": "danger", "interrupted": "warning", "unknown": "warning"}


@admin.register(UsageRecord)
class UsageRecordAdmin(FactAdmin):
    list_display = [
        "short_id",
        "started",
        "tenant",
        "key_name",
        "model_id",
        "status_label",
        "tokens",
        "charge_amount",
        "took",
    ]
    list_filter = [
        ("tenant", AutocompleteSelectFilter),
        ("key", AutocompleteSelectFilter),
        ModelFilter,
        ("status", ChoicesDropdownFilter),
        ("local_date", DayFilter),
    ]
    search_fields = ["request_id"]
    search_help_text = "Request id: x-request-id, chatcmpl-… or UUID"
    list_select_related = ["tenant", "key"]
    ordering = ["-request_id"]
    fieldsets = [
        (None, {"fields": [("request_id", "outcome"), ("tenant", "key"), ("model", "served_by"), "where"]}),
        (
            "Time",
            {"fields": [("started_at", "ended_at"), ("local_date", "first_byte_ms"), ("stream", "endpoint")]},
        ),
        ("Attempts", {"fields": ["attempts"]}),
        (
            "Tokens",
            {
                "fields": [
                    ("input_tokens", "output_tokens"),
                    ("cached_input_tokens", "reasoning_tokens"),
                    ("cache_write_tokens", "estimated"),
                ]
            },
        ),
        ("Money", {"fields": [("charge_amount", "cost_amount"), "rated_lines", "adjustments"]}),
        ("Limits", {"fields": ["decision"]}),
        ("Client", {"fields": [("http_status", "error_code"), ("client_request_id", "end_user")]}),
    ]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[UsageRecord], search_term: str
    ) -> tuple[QuerySet[UsageRecord], bool]:
        """Only by id: any other search would read the whole ledger."""
        if not search_term.strip():
            return queryset, False
        request_id = parse_request_id(search_term)
        return (queryset.filter(request_id=request_id) if request_id else queryset.none()), False

    @display(description="request")
    def short_id(self, record: UsageRecord) -> SafeString:
        return unbroken(f"…{str(record.request_id)[-8:]}")

    @display(description="started (UTC)")
    def started(self, record: UsageRecord) -> SafeString:
        return unbroken(f"{record.started_at:%Y-%m-%d %H:%M:%S}")

    @display(description="model")
    def model_id(self, record: UsageRecord) -> SafeString:
        return unbroken(f"{record.model} → {record.served_model}" if record.served_model else record.model)

    @display(description="served by")
    def served_by(self, record: UsageRecord) -> str:
        return record.served_model or record.model

    @display(description="attempts")
    def attempts(self, record: UsageRecord) -> SafeString | str:
        return table_of(record)

    @display(description="key")
    def key_name(self, record: UsageRecord) -> str:
        return record.key.name

    @display(description="status", label=STATUS_LABELS)
    def status_label(self, record: UsageRecord) -> str:
        return record.status

    @display(description="status")
    def outcome(self, record: UsageRecord) -> str:
        return f"{record.status}: {record.error_code}" if record.error_code else record.status

    @display(description="tokens in + out")
    def tokens(self, record: UsageRecord) -> SafeString:
        into = record.input_tokens + record.cached_input_tokens + record.cache_write_tokens
        return unbroken(f"{into:,} + {record.output_tokens + record.reasoning_tokens:,}")

    @display(description="charge")
    def charge_amount(self, record: UsageRecord) -> SafeString:
        return unbroken(money(record.charge, record.charge_currency))

    @display(description="cost")
    def cost_amount(self, record: UsageRecord) -> str:
        return money(record.cost, record.cost_currency) if record.cost is not None else "no cost price"

    @display(description="took")
    def took(self, record: UsageRecord) -> SafeString:
        return unbroken(f"{round((record.ended_at - record.started_at).total_seconds() * 1000)} ms")

    @display(description="provider")
    def where(self, record: UsageRecord) -> str:
        provider = Provider.objects.filter(pk=record.provider_id or 0).values_list("name", flat=True).first()
        return f"{provider or 'provider ' + str(record.provider_id)} (deployment {record.deployment_id})"

    @display(description="rated")
    def rated_lines(self, record: UsageRecord) -> SafeString | str:
        if not record.lines:
            return "nothing"
        rows = [
            (side, name, units, format_amount(int(price)), format_amount(int(amount)))
            for side, name, units, price, amount in record.lines
        ]
        cells = '<tr><td>{}</td><td>{}</td><td class="cf-number">{}</td>'
        cells += '<td class="cf-number">{}</td><td class="cf-number">{}</td></tr>'
        head = '<tr><th>Side</th><th>Class</th><th class="cf-number">Units</th>'
        head += '<th class="cf-number">Price per 1M</th><th class="cf-number">Amount</th></tr>'
        body = format_html_join("", cells, rows)
        return format_html('<table class="cf-table"><thead>{}</thead><tbody>{}</tbody></table>', _safe(head), body)

    @display(description="decided on")
    def decision(self, record: UsageRecord) -> SafeString:
        url = f"{reverse('admin:explain')}?id={record.request_id}"
        return format_html('<a class="cf-link" href="{}">The limits that were looked at</a>', url)

    @display(description="adjustments")
    def adjustments(self, record: UsageRecord) -> SafeString:
        rows = [
            (
                reverse("admin:ledger_adjustment_change", args=[adjustment.pk]),
                adjustment.get_kind_display(),
                money(adjustment.charge, adjustment.charge_currency),
                adjustment.reason,
            )
            for adjustment in adjustments_of(record)
        ]
        listed = format_html_join("", '<p><a class="cf-link" href="{}">{}</a>: {}. {}</p>', rows)
        add = f"{reverse('admin:ledger_adjustment_add')}?request_id={record.request_id}"
        return format_html('{}<p><a class="cf-link" href="{}">Add a correction</a></p>', listed, add)


def _safe(text: str) -> Any:
    return SafeString(text)
