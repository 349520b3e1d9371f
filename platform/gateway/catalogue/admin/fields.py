"""Amounts of money in forms: decimal texts, never floats."""

from __future__ import annotations

from typing import Any

from django import forms
from unfold.widgets import UnfoldAdminTextInputWidget

from gateway.catalogue.pricing import format_amount, parse_amount


class AmountField(forms.CharField):
    """'0.15' <-> 150,000,000 nano-units."""

    def __init__(self, *args: Any, signed: bool = False, **kwargs: Any) -> None:
        kwargs.setdefault("widget", UnfoldAdminTextInputWidget(attrs={"inputmode": "decimal", "autocomplete": "off"}))
        kwargs.setdefault("max_length", 30)
        self.signed = signed
        super().__init__(*args, **kwargs)

    def prepare_value(self, value: Any) -> Any:
        return format_amount(value) if isinstance(value, int) else value

    def clean(self, value: Any) -> Any:
        text = super().clean(value)
        if not text:
            return None
        try:
            amount = parse_amount(text)
        except ValueError as exc:
            raise forms.ValidationError(f"{exc}.") from exc
        if amount < 0 and not self.signed:
            raise forms.ValidationError("This cannot be negative.")
        return amount

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool((self.prepare_value(initial) or "") != (data or "").strip())
