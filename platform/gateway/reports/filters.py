"""The query parameters of the finance API, checked by django-filter; what they mean is `asking.Asked`."""

from __future__ import annotations

from typing import Any

import django_filters
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request

from gateway.ledger.models import UsageRecord
from gateway.reports.asking import Asked
from gateway.reports.selection import BadSelection, Selection

OTHER_PARAMETERS = {"cursor", "limit", "format"}
_DAY = "as YYYY-MM-DD, a local day of each tenant"


class UsageFilter(django_filters.FilterSet):
    """Reads parameters only: rows come from `request_lines` and `day_lines`, not from a queryset."""

    by = django_filters.ChoiceFilter(choices=[("request", "request"), ("day", "day")], help_text="default: request")
    tenant = django_filters.CharFilter(help_text="a tenant's slug")
    key = django_filters.CharFilter(help_text="an API key's public id")
    model = django_filters.CharFilter(help_text="a model's public id")
    status = django_filters.ChoiceFilter(choices=UsageRecord.Status.choices, help_text="with by=request only")

    class Meta:
        model = UsageRecord
        fields: list[str] = []

    @classmethod
    def get_filters(cls) -> dict[str, Any]:
        """`from` cannot be written as an attribute in Python."""
        return {
            "from": django_filters.CharFilter(required=True, help_text=f"first day, {_DAY}"),
            "to": django_filters.CharFilter(required=True, help_text=f"last day, included, {_DAY}"),
            **super().get_filters(),
        }


def asked_by(request: Request) -> tuple[Asked, Selection]:
    """What a request asks for. Raises DRF's ValidationError, for parameters that do not exist, too: a typo in
    `tenant` must not answer with everybody's usage."""
    filters = UsageFilter(request.query_params, queryset=UsageRecord.objects.none(), request=request)
    known = set(filters.filters) | OTHER_PARAMETERS
    unknown = {
        name: [f"There is no such parameter. There are: {', '.join(sorted(known))}."]
        for name in request.query_params
        if name not in known
    }
    if unknown:
        raise ValidationError(unknown)
    if not filters.is_valid():
        raise ValidationError(filters.errors)
    given = {name: value or "" for name, value in filters.form.cleaned_data.items()}
    asked = Asked(
        first=given["from"],
        last=given["to"],
        by=given["by"] or "request",
        tenant=given["tenant"],
        key=given["key"],
        model=given["model"],
        status=given["status"],
    )
    try:
        return asked, asked.selection()
    except BadSelection as problem:
        raise ValidationError({problem.parameter: [str(problem)]}) from None
