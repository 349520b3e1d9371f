"""Forms of limits: amounts of spend are decimal texts, the others whole numbers, told apart by the metric."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from django import forms
from django.utils import timezone
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminSplitDateTimeWidget,
    UnfoldAdminTextInputWidget,
)

from gateway.catalogue.pricing import format_amount, parse_amount
from gateway.limits.models import Credit, LimitRule
from tenants.currencies import MINOR_UNITS

FIXED = ("metric", "per", "tokens", "currency")  # another of these is another rule, with counters of its own
MOST = 2**63 - 1


def shown(rule: LimitRule, value: int | None) -> str:
    if value is None:
        return ""
    return format_amount(value, 2) if rule.metric == "spend" else str(value)


def read_amount(metric: str, text: str) -> int:
    """Nano-units of spend, else a count. Raises forms.ValidationError."""
    text = text.strip().replace("_", "").replace(" ", "")
    if metric == "spend":
        try:
            amount = parse_amount(text)
        except ValueError as exc:
            raise forms.ValidationError(f"{exc}. Type an amount such as 50.00.") from exc
    else:
        if not re.fullmatch(r"-?[0-9]+", text):
            raise forms.ValidationError(f"{text!r} is not a whole number. A limit of {metric} counts in ones.")
        amount = int(text)
    if not 0 <= amount <= MOST:
        raise forms.ValidationError("This cannot be negative." if amount < 0 else "This is too large.")
    return amount


class AmountText(forms.CharField):
    def __init__(self, **kwargs: Any) -> None:
        widget = UnfoldAdminTextInputWidget(attrs={"inputmode": "decimal", "autocomplete": "off"})
        super().__init__(max_length=30, **{"widget": widget, **kwargs})


class ThresholdsField(forms.CharField):
    """'50, 80, 100' <-> [50, 80, 100]."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            **{"widget": UnfoldAdminTextInputWidget, "required": False, "initial": "50, 80, 100", **kwargs}
        )

    def prepare_value(self, value: Any) -> Any:
        return ", ".join(map(str, value)) if isinstance(value, list) else value

    def clean(self, value: Any) -> Any:
        parts = [part for part in re.split(r"[\s,%]+", super().clean(value) or "") if part]
        if not all(re.fullmatch(r"[0-9]{1,3}", part) for part in parts):
            raise forms.ValidationError("Per cent of the limit, such as 50, 80, 100. Empty: no warnings.")
        return [int(part) for part in parts]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool(self.prepare_value(initial) != (data or ""))


class LimitRuleForm(forms.ModelForm[LimitRule]):
    amount = AmountText(help_text="Spend: an amount such as 50.00. Otherwise a whole number. 0 lets nothing through.")
    currency = forms.ChoiceField(
        required=False,
        widget=UnfoldAdminSelectWidget,
        choices=[("", "the tenant's"), *((code, code) for code in sorted(MINOR_UNITS))],
        help_text="Only for a model or a plan: it counts what is charged in this currency.",
    )
    thresholds = ThresholdsField(help_text="Warn once a window when so many per cent are used.")
    floor = forms.IntegerField(
        required=False,
        initial=16,
        min_value=1,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="Fit: never lower the completion under so many tokens; then refuse.",
    )
    fiscal_day = forms.IntegerField(
        required=False,
        initial=1,
        min_value=1,
        max_value=28,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="The day on which the fiscal month begins, 1 to 28.",
    )

    class Meta:
        model = LimitRule
        fields = ["tenant", "key", "model", *FIXED, "amount", "mode", "hold", "on_shortage", "floor", "fiscal_day"]
        fields += ["thresholds", "enabled"]
        labels = {"per": "Window", "tokens": "Which tokens"}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk is not None:
            self.initial["amount"] = shown(self.instance, self.instance.amount)
            for name in FIXED:
                if name in self.fields:
                    # Disabled, not read-only: what is shown depends on their values.
                    self.fields[name].disabled = True

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        for name, usual in (("floor", 16), ("fiscal_day", 1)):
            if name in self.fields and data.get(name) is None and name not in self.errors:
                data[name] = usual
        if "amount" in data and data.get("metric"):
            try:
                data["amount"] = read_amount(data["metric"], data["amount"])
            except forms.ValidationError as exc:
                self.add_error("amount", exc)
        if self.instance.pk is None and self.instance.plan_id is None and not isinstance(self, PlanRuleForm):
            self._check_subject(data)
        return data

    def _check_subject(self, data: dict[str, Any]) -> None:
        if data.get("tenant") and data.get("key"):
            self.add_error("key", "Either the whole tenant or one of its keys: leave one of them empty.")
        elif not (data.get("tenant") or data.get("key") or data.get("model")):
            self.add_error(
                "tenant", "Say whom it limits: a tenant, a key, a model, or a model with one of the others."
            )
        elif not self.errors and self._same(data).exists():
            text = "There is such a limit already. Change its amount, or raise it for a while."
            self.add_error("metric", text)

    def _same(self, data: dict[str, Any]) -> Any:
        kind = {name: data.get(name) for name in ("tenant", "key", "model", "metric")}
        per = "" if data.get("metric") == "in_flight" else data.get("per")
        tokens = data.get("tokens") or "both"
        kind |= {"per": per, "tokens": tokens if data.get("metric") == "tokens" else "both"}
        if data.get("metric") == "spend" and data.get("currency"):
            kind["currency"] = data["currency"]
        return LimitRule.objects.filter(plan=None, **kind)


class PlanRuleForm(LimitRuleForm):
    """A row on the plan's page."""

    class Meta(LimitRuleForm.Meta):
        fields = ["model", *FIXED, "amount", "mode", "hold", "on_shortage"]


class RaiseForm(forms.Form):
    """A temporary amount. Bound to a rule, whose metric says how the amount is read."""

    amount = AmountText(help_text="What is allowed until then, in place of the rule's amount.")
    until = forms.SplitDateTimeField(widget=UnfoldAdminSplitDateTimeWidget, help_text="UTC.")

    def __init__(self, *args: Any, rule: LimitRule, now: datetime, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rule, self.now = rule, now

    def clean_amount(self) -> int:
        amount = read_amount(self.rule.metric, self.cleaned_data["amount"])
        if amount <= self.rule.amount:
            raise forms.ValidationError(f"The rule allows {shown(self.rule, self.rule.amount)} already: give more.")
        return amount

    def clean_until(self) -> datetime:
        until: datetime = self.cleaned_data["until"]
        if until <= self.now:
            raise forms.ValidationError("This is over already: give an end in the future.")
        return until


class CreditForm(forms.ModelForm[Credit]):
    amount = AmountText(help_text="In the currency of the limit, such as 100.00.")

    class Meta:
        model = Credit
        fields = ["rule", "amount", "expires_at", "note"]

    def clean_amount(self) -> int:
        amount = read_amount("spend", self.cleaned_data["amount"])
        if amount == 0:
            raise forms.ValidationError("A top-up of nothing: give an amount above 0.")
        return amount

    def clean_expires_at(self) -> datetime | None:
        end: datetime | None = self.cleaned_data["expires_at"]
        if end is not None and end <= timezone.now() and "expires_at" in self.changed_data:
            raise forms.ValidationError("This is over already: give an end in the future, or none.")
        return end
