"""Prices in the admin: amounts are decimal texts per 1,000,000 units, converted exactly."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget

from gateway.catalogue.admin.fields import AmountField
from gateway.catalogue.models import Price
from gateway.catalogue.pricing import format_amount
from gateway.catalogue.services import AMOUNTS, lock_unused
from tenants.admin.history import KeptAdmin
from tenants.currencies import MINOR_UNITS


class PriceForm(forms.ModelForm[Price]):
    input = AmountField(label="Input", help_text='Per 1,000,000 tokens, such as "0.15".')
    cached_input = AmountField(label="Cached input", required=False, help_text="Empty: as input.")
    cache_write = AmountField(label="Cache write", required=False, help_text="Empty: as input.")
    output = AmountField(label="Output", help_text="Per 1,000,000 tokens.")
    reasoning = AmountField(label="Reasoning", required=False, help_text="Empty: as output.")
    request = AmountField(label="Requests", required=False, help_text="Per 1,000,000 requests. Empty: nothing.")
    currency = forms.ChoiceField(
        widget=UnfoldAdminSelectWidget, choices=[(code, code) for code in sorted(MINOR_UNITS)], initial="USD"
    )

    class Meta:
        model = Price
        fields = ["model", "side", "tenant", "provider", "effective_from", "currency", *AMOUNTS]

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        data["request"] = data.get("request") or 0
        if data.get("side") == Price.Side.CHARGE and data.get("provider"):
            self.add_error("provider", "What tenants are charged does not depend on the provider. Choose side cost.")
        if data.get("side") == Price.Side.COST and data.get("tenant"):
            self.add_error("tenant", "What a provider charges us does not depend on the tenant. Choose side charge.")
        if self.instance.pk is not None:
            lock_unused(self.instance.pk)  # the admin's view is one transaction: it stays unused till we are done
        return data


@admin.register(Price)
class PriceAdmin(KeptAdmin):
    form = PriceForm
    list_display = [
        "model",
        "side",
        "whose",
        "currency",
        "effective_from",
        "input_amount",
        "cached_input_amount",
        "output_amount",
        "used",
    ]
    list_filter = [
        ("model", AutocompleteSelectFilter),
        ("tenant", AutocompleteSelectFilter),
        "side",
        "currency",
    ]
    search_fields = ["model__public_id", "tenant__slug", "provider__name"]
    list_select_related = ["model", "tenant", "provider"]
    autocomplete_fields = ["model", "tenant", "provider"]
    fieldsets: Any = [
        (
            "Whose price",
            {
                "fields": [("model", "side"), ("tenant", "provider"), "currency", "effective_from", "use"],
                "description": "Charge without a tenant is the list price; cost without a provider holds for all.",
            },
        ),
        (
            "Amounts per 1,000,000",
            {"fields": [("input", "output"), ("cached_input", "reasoning"), ("cache_write", "request")]},
        ),
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Price]:
        queryset: QuerySet[Price] = super().get_queryset(request)
        return queryset.defer("provider__credential")

    def get_fieldsets(self, request: HttpRequest, obj: Price | None = None) -> Any:
        """A price that cannot be edited is shown through columns, which format the amounts."""
        if self.has_change_permission(request, obj):
            return self.fieldsets
        (title, whose), (heading, amounts) = self.fieldsets
        shown = [tuple(f"{name}_amount" for name in row) for row in amounts["fields"]]
        return [(title, whose), (heading, {"fields": shown})]

    def get_readonly_fields(self, request: HttpRequest, obj: Price | None = None) -> list[str]:
        amounts = [] if self.has_change_permission(request, obj) else [f"{name}_amount" for name in AMOUNTS]
        return ["use", *amounts]

    def has_change_permission(self, request: HttpRequest, obj: Price | None = None) -> bool:
        unused = not isinstance(obj, Price) or obj.first_used_at is None
        return unused and bool(super().has_change_permission(request, obj))

    def has_delete_permission(self, request: HttpRequest, obj: Price | None = None) -> bool:
        unused = not isinstance(obj, Price) or obj.first_used_at is None
        return unused and bool(super().has_delete_permission(request, obj))

    def why_kept(self, obj: Price) -> str:
        if obj.first_used_at is None:
            return ""
        return f"{obj} has been used: records were rated with it, so it cannot be deleted. Add a later one."

    @display(description="whose")
    def whose(self, price: Price) -> str:
        return str(price.tenant or price.provider or ("list" if price.side == Price.Side.CHARGE else "any provider"))

    @display(description="input", ordering="input")
    def input_amount(self, price: Price) -> str:
        return format_amount(price.input)

    @display(description="output", ordering="output")
    def output_amount(self, price: Price) -> str:
        return format_amount(price.output)

    @display(description="cached input", ordering="cached_input")
    def cached_input_amount(self, price: Price) -> str:
        return "as input" if price.cached_input is None else format_amount(price.cached_input)

    @display(description="cache write", ordering="cache_write")
    def cache_write_amount(self, price: Price) -> str:
        return "as input" if price.cache_write is None else format_amount(price.cache_write)

    @display(description="reasoning", ordering="reasoning")
    def reasoning_amount(self, price: Price) -> str:
        return "as output" if price.reasoning is None else format_amount(price.reasoning)

    @display(description="requests", ordering="request")
    def request_amount(self, price: Price) -> str:
        return format_amount(price.request)

    @display(description="used", boolean=True)
    def used(self, price: Price) -> bool:
        return price.first_used_at is not None

    @display(description="use")
    def use(self, price: Price) -> str:
        if price.pk is None or price.first_used_at is None:
            return "Not used yet. Once a request was rated with it, it can no longer change."
        same = {"model": price.model_id, "side": price.side, "currency": price.currency}
        same |= {"tenant": price.tenant_id or "", "provider": price.provider_id or ""}
        return format_html(
            "Used since {} UTC, so it cannot change. "
            '<a class="cf-link" href="{}?{}">Add a row with a later effective_from</a> instead.',
            f"{price.first_used_at:%Y-%m-%d %H:%M}",
            reverse("admin:catalogue_price_add"),
            urlencode({name: value for name, value in same.items() if value != ""}),
        )
