"""Adjustments in the admin: a correction is added with a reason, and stays for ever."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter
from unfold.decorators import display
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from gateway.catalogue.admin.fields import AmountField
from gateway.ledger.admin.facts import FactAdmin, money
from gateway.ledger.admin.filters import ModelFilter
from gateway.ledger.books import Delta
from gateway.ledger.models import Adjustment
from gateway.ledger.services import TOKENS, adjust, find_record


class TokensField(forms.IntegerField):
    def __init__(self) -> None:
        super().__init__(required=False, initial=0, widget=UnfoldAdminIntegerFieldWidget)


class AdjustmentForm(forms.ModelForm[Adjustment]):
    """Deltas: what is added to the record. Booked while it is checked, under the lock of its counters."""

    request_id = forms.UUIDField(
        label="Request", widget=UnfoldAdminTextInputWidget, help_text="The record that this corrects."
    )
    input_tokens = TokensField()
    cached_input_tokens = TokensField()
    cache_write_tokens = TokensField()
    output_tokens = TokensField()
    reasoning_tokens = TokensField()
    charge = AmountField(
        required=False, signed=True, initial="0", help_text='What to add, such as "-0.15" to give that back.'
    )
    cost = AmountField(required=False, signed=True, initial="0", help_text="What to add to the provider's cost.")
    reason = forms.CharField(widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}), help_text="Auditors read this.")
    by: Any = None

    class Meta:
        model = Adjustment
        fields: list[str] = []

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if self.errors:
            return data
        record = find_record(data["request_id"])
        if record is None:
            raise ValidationError({"request_id": "There is no record of this request."})
        numbers = {name: data.get(name) or 0 for name in (*TOKENS, "charge", "cost")}
        # The admin's view is one transaction: if anything after this fails, the booking goes, too.
        self.booked = adjust(record=record, delta=Delta(**numbers), reason=data["reason"], by=self.by)
        return data

    def _post_clean(self) -> None:
        """The booked row stands for the form's instance, which is not saved."""
        if not self.errors:
            self.instance = self.booked


@admin.register(Adjustment)
class AdjustmentAdmin(FactAdmin):
    form = AdjustmentForm
    list_display = [
        "created_at",
        "kind_label",
        "corrects",
        "tenant",
        "model",
        "charge_amount",
        "tokens",
        "created_by",
    ]
    list_filter = [("tenant", AutocompleteSelectFilter), ModelFilter, ("kind", ChoicesDropdownFilter)]
    list_select_related = ["tenant", "created_by"]
    ordering = ["-created_at", "-id"]
    add_fieldsets = [
        (None, {"fields": ["request_id", "reason"]}),
        ("What to add", {"fields": [("charge", "cost")]}),
        (
            "Tokens to add",
            {
                "fields": [
                    ("input_tokens", "output_tokens"),
                    ("cached_input_tokens", "reasoning_tokens"),
                    "cache_write_tokens",
                ]
            },
        ),
    ]
    fieldsets = [
        (None, {"fields": [("kind_label", "corrects"), "reason", ("created_by", "created_at")]}),
        ("Whose", {"fields": [("tenant", "key"), ("model", "local_date")]}),
        ("Added", {"fields": [("charge_amount", "cost_amount"), *((name,) for name in TOKENS)]}),
    ]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("ledger.add_adjustment"))

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        if obj is not None:
            return super().get_form(request, obj, change, **kwargs)
        return type("BoundAdjustmentForm", (AdjustmentForm,), {"by": request.user})

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"request_id": request.GET.get("request_id", "")}

    def save_form(self, request: HttpRequest, form: Any, change: bool) -> Any:
        return form.instance

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """It is booked already."""

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Nothing belongs to it."""

    @display(description="kind", label=True)
    def kind_label(self, adjustment: Adjustment) -> str:
        return adjustment.get_kind_display()

    @display(description="request")
    def corrects(self, adjustment: Adjustment) -> str:
        url = reverse("admin:ledger_usagerecord_change", args=[adjustment.request_id])
        return format_html('<a class="cf-link" href="{}">…{}</a>', url, str(adjustment.request_id)[-8:])

    @display(description="charge")
    def charge_amount(self, adjustment: Adjustment) -> str:
        return money(adjustment.charge, adjustment.charge_currency)

    @display(description="cost")
    def cost_amount(self, adjustment: Adjustment) -> str:
        return money(adjustment.cost, adjustment.cost_currency)

    @display(description="tokens")
    def tokens(self, adjustment: Adjustment) -> int:
        return sum(getattr(adjustment, name) for name in TOKENS)
