"""What the admin's export page asks for."""

from __future__ import annotations

from datetime import date
from typing import Any

from django import forms
from unfold.widgets import (
    UnfoldAdminSelectWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from gateway.reports.asking import Asked
from gateway.reports.selection import BadSelection


class ExportForm(forms.Form):
    """A GET form: its address is the download's, so that it can be kept as a bookmark."""

    first = forms.CharField(label="From", widget=UnfoldAdminTextInputWidget(attrs={"type": "date"}))
    last = forms.CharField(
        label="To",
        widget=UnfoldAdminTextInputWidget(attrs={"type": "date"}),
        help_text="Both days are included. Days are those of each tenant's own time zone.",
    )
    tenant = forms.CharField(
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "all tenants"}),
        help_text="The tenant's slug; empty: all tenants.",
    )
    by = forms.ChoiceField(
        label="Lines",
        choices=[("day", "one per day, key and model"), ("request", "one per request")],
        widget=UnfoldAdminSelectWidget,
    )
    excel = forms.BooleanField(
        label="For Excel",
        required=False,
        widget=UnfoldBooleanSwitchWidget,
        help_text="Puts a byte order mark in front, without which Excel garbles letters such as ü.",
    )

    def clean(self) -> dict[str, Any]:
        given = super().clean() or {}
        if self.errors:
            return given
        self.asked = Asked(first=given["first"], last=given["last"], by=given["by"], tenant=given["tenant"])
        try:
            self.asked.selection()
        except BadSelection as problem:
            self.add_error({"from": "first", "to": "last"}.get(problem.parameter, problem.parameter), str(problem))
        return given


def this_month(today: date) -> dict[str, str]:
    """What the page begins with."""
    return {"first": today.replace(day=1).isoformat(), "last": today.isoformat(), "by": "day"}
