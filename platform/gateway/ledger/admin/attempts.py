"""What was tried for a request: on its record's page, and all of it in a list for operators."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import AutocompleteSelectFilter, DropdownFilter, TextFilter
from unfold.decorators import display

from gateway.catalogue.models import Deployment, Provider
from gateway.catalogue.pricing import format_amount
from gateway.identifiers import parse_request_id
from gateway.ledger.admin.facts import FactAdmin, money, unbroken
from gateway.ledger.admin.filters import InstantFilter, ModelFilter
from gateway.ledger.models import Attempt, UsageRecord

HEAD = ("", "Where", "Model", "Started after", "First byte after", "Took", "Outcome", "Tokens in + out", "Cost")


class DeploymentFilter(DropdownFilter):
    title = "deployment"
    parameter_name = "deployment"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(str(d.pk), f"{d} ({d.pk})") for d in Deployment.objects.select_related("model", "provider")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset.filter(deployment_id=int(value)) if value and value.isdecimal() else queryset


class ProviderFilter(DropdownFilter):
    title = "provider"
    parameter_name = "provider"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(str(pk), name) for pk, name in Provider.objects.values_list("pk", "name")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset.filter(provider_id=int(value)) if value and value.isdecimal() else queryset


class OutcomeFilter(TextFilter):
    """Whole: ok, connect, timeout, status_503 …"""

    title = "outcome"
    parameter_name = "outcome"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = (self.value() or "").strip()
        return queryset.filter(outcome=value) if value else queryset


@admin.register(Attempt)
class AttemptAdmin(FactAdmin):
    """Read from its lists; a single one stands on its request's page."""

    list_display = [
        "record",
        "number",
        "started",
        "tenant",
        "model",
        "where",
        "outcome",
        *("first_byte", "took", "used"),
    ]
    list_display_links = None
    list_filter = [
        ("tenant", AutocompleteSelectFilter),
        ModelFilter,
        DeploymentFilter,
        ProviderFilter,
        OutcomeFilter,
        ("started_at", InstantFilter),
    ]
    search_fields = ["request_id"]
    search_help_text = "Request id: x-request-id, chatcmpl-… or UUID"
    list_select_related = ["tenant"]
    ordering = ["-request_id", "number"]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Attempt], search_term: str
    ) -> tuple[QuerySet[Attempt], bool]:
        if not search_term.strip():
            return queryset, False
        request_id = parse_request_id(search_term)
        return (queryset.filter(request_id=request_id) if request_id else queryset.none()), False

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """With the names of this page's providers, in one query."""
        changelist = super().get_changelist_instance(request)
        names = provider_names(changelist.result_list)
        for attempt in changelist.result_list:
            attempt.its_provider = names.get(attempt.provider_id)
        return changelist

    @display(description="request")
    def record(self, attempt: Attempt) -> SafeString:
        url = reverse("admin:ledger_usagerecord_change", args=[attempt.request_id])
        return format_html('<a class="cf-link cf-nowrap" href="{}">…{}</a>', url, str(attempt.request_id)[-8:])

    @display(description="started (UTC)")
    def started(self, attempt: Attempt) -> SafeString:
        return unbroken(f"{attempt.started_at:%Y-%m-%d %H:%M:%S}")

    @display(description="provider (deployment)")
    def where(self, attempt: Any) -> SafeString:
        return unbroken(place(attempt.its_provider, attempt))

    @display(description="first byte")
    def first_byte(self, attempt: Attempt) -> SafeString:
        return unbroken(elapsed(attempt.started_at, attempt.first_byte_at))

    @display(description="took")
    def took(self, attempt: Attempt) -> SafeString:
        return unbroken(elapsed(attempt.started_at, attempt.ended_at))

    @display(description="cost")
    def used(self, attempt: Attempt) -> SafeString:
        return unbroken(cost(attempt))


def provider_names(attempts: list[Attempt]) -> dict[int, str]:
    wanted = {attempt.provider_id for attempt in attempts}
    return dict(Provider.objects.filter(pk__in=wanted).values_list("pk", "name"))


def place(name: str | None, attempt: Attempt) -> str:
    return f"{name or f'provider {attempt.provider_id}'} ({attempt.deployment_id})"


def elapsed(since: datetime, until: datetime | None) -> str:
    return "" if until is None else f"{round((until - since).total_seconds() * 1000)} ms"


def cost(attempt: Attempt) -> str:
    if attempt.cost is None:
        return "no cost price"
    return money(attempt.cost, attempt.cost_currency) if attempt.cost_currency else format_amount(attempt.cost)


def table_of(record: UsageRecord) -> SafeString | str:
    """The attempts of one request; a plain request is its own only one, and has none."""
    attempts: list[Any] = list(Attempt.objects.filter(request_id=record.request_id).order_by("number"))
    if not attempts:
        return "one, of which the record says all"
    names = provider_names(attempts)
    rows = [_row(record, attempt, names.get(attempt.provider_id)) for attempt in attempts]
    head = format_html_join("", "<th>{}</th>", ((title,) for title in HEAD))
    body = format_html_join("", f"<tr>{'<td>{}</td>' * len(HEAD)}</tr>", rows)
    table = format_html('<table class="cf-table"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>', head, body)
    failed: dict[str, int] = {}
    for attempt in attempts:
        if not attempt.served and attempt.cost:
            failed[attempt.cost_currency] = failed.get(attempt.cost_currency, 0) + attempt.cost
    sums = format_html_join("", "<p>Cost of failed attempts: {}</p>", ((money(n, c),) for c, n in failed.items()))
    return format_html("{}{}", table, sums)


def _row(record: UsageRecord, attempt: Attempt, provider: str | None) -> tuple[str | int, ...]:
    into = attempt.input_tokens + attempt.cached_input_tokens + attempt.cache_write_tokens
    out = attempt.output_tokens + attempt.reasoning_tokens
    return (
        attempt.number,
        place(provider, attempt),
        attempt.model,
        elapsed(record.started_at, attempt.started_at),
        elapsed(attempt.started_at, attempt.first_byte_at),
        elapsed(attempt.started_at, attempt.ended_at),
        f"{attempt.outcome} (served)" if attempt.served else attempt.outcome,
        f"{into:,} + {out:,}" if into + out else "",
        cost(attempt),
    )
