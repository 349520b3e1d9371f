"""What the pages of keys and tenants share: lists as lines, the way to their limits."""

from __future__ import annotations

import re
from typing import Any

from django import forms
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.widgets import UnfoldAdminTextareaWidget


class LinesField(forms.CharField):
    """A list of short texts, one a line (commas do too)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("widget", UnfoldAdminTextareaWidget(attrs={"rows": 3}))
        super().__init__(*args, **kwargs)

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        return list(dict.fromkeys(part for part in re.split(r"[\s,]+", value or "") if part))

    def validate(self, value: Any) -> None:
        if self.required and not value:
            raise forms.ValidationError(self.error_messages["required"], code="required")

    def run_validators(self, value: Any) -> None:
        """CharField's validators are about one text; the model's own are run on the list by `full_clean`."""

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool((initial or []) != self.to_python(data))


def limits_of(subject: str, pk: int) -> SafeString:
    """Links to the limits of a tenant or key; their pages belong to a layer above."""
    return format_html(
        '<a class="cf-link" href="{}?{}__id__exact={}">Its limits</a> · '
        '<a class="cf-link" href="{}?{}={}">Add a limit</a> · '
        '<a class="cf-link" href="{}?{}__id__exact={}">Its refusals</a>',
        reverse("admin:limits_limitrule_changelist"),
        subject,
        pk,
        reverse("admin:limits_limitrule_add"),
        subject,
        pk,
        reverse("admin:limits_refusal_changelist"),
        subject,
        pk,
    )
