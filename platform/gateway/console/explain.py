"""Pages on limits: why a request was admitted or refused, and whether one would be."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSingleDateWidget,
    UnfoldAdminSingleTimeWidget,
    UnfoldAdminTextInputWidget,
)

from gateway.catalogue.pricing import format_amount
from gateway.identifiers import parse_request_id
from gateway.ledger.explanation import NOTHING_KEPT, explain
from gateway.ledger.simulator import EARLIEST, LATEST, MOST_TOKENS, Simulation, simulate
from gateway.limits.models import LimitRule
from tenants.models import APIKey


class FindForm(forms.Form):
    id = forms.CharField(
        label="Request",
        max_length=100,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "req_…", "autocomplete": "off"}),
        help_text="The x-request-id of the answer (req_…), chatcmpl-… or a UUID.",
    )

    def clean_id(self) -> Any:
        found = parse_request_id(self.cleaned_data["id"])
        if found is None:
            raise forms.ValidationError(
                "This is no request id. One looks like req_ and 32 digits and letters a to f."
            )
        return found


class SimulateForm(forms.Form):
    key = forms.CharField(
        label="API key",
        max_length=200,
        widget=UnfoldAdminTextInputWidget(attrs={"autocomplete": "off"}),
        help_text="Its public id, such as 3x8kq2m7v9ab: the part after sk-cf-.",
    )
    model = forms.CharField(max_length=200, widget=UnfoldAdminTextInputWidget, help_text="An id or an alias.")
    input_tokens = forms.IntegerField(
        min_value=0,
        max_value=MOST_TOKENS,
        initial=1000,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="For a hard limit, which holds the worst case: the bytes of the text.",
    )
    output_tokens = forms.IntegerField(
        min_value=0, max_value=MOST_TOKENS, initial=1000, widget=UnfoldAdminIntegerFieldWidget
    )
    date = forms.DateField(
        label="On",
        required=False,
        widget=UnfoldAdminSingleDateWidget,
        help_text="In the tenant's time zone. Empty: now.",
    )
    time = forms.TimeField(label="At", required=False, widget=UnfoldAdminSingleTimeWidget)

    def clean_key(self) -> APIKey:
        text = self.cleaned_data["key"].strip().removeprefix("sk-cf-").partition("-")[0]
        key = APIKey.objects.select_related("tenant").filter(public_id=text).first()
        if key is None:
            raise forms.ValidationError("There is no API key with this public id.")
        return key

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if data.get("time") and not data.get("date"):
            self.add_error("date", "Give the day, too.")
        if data.get("date") and not EARLIEST.date() < data["date"] < LATEST.date():
            self.add_error("date", f"Give a day between {EARLIEST:%Y} and {LATEST:%Y}.")
        return data

    def answer(self, now: datetime) -> Simulation:
        data = self.cleaned_data
        key: APIKey = data["key"]
        at = now
        if data["date"]:
            at = datetime.combine(data["date"], data["time"] or datetime.min.time(), key.tenant.zone)
        return simulate(
            key=key,
            model=data["model"].strip(),
            input_tokens=data["input_tokens"],
            output_tokens=data["output_tokens"],
            at=at,
            now=now,
        )


def explain_page(request: HttpRequest) -> HttpResponse:
    _require(request, "ledger.view_usagerecord")
    form = FindForm(request.GET if "id" in request.GET else None)
    asked = form.is_bound and form.is_valid()
    explanation = explain(form.cleaned_data["id"]) if asked else None
    charge = None
    if explanation is not None and explanation.charge is not None:
        charge = f"{format_amount(explanation.charge, 2)} {explanation.currency}"
    context = {
        "title": "Explain a request",
        "form": form,
        "asked": asked,
        "explanation": explanation,
        "charge": charge,
        "nothing_kept": NOTHING_KEPT,
        "recorded": explanation is not None and explanation.source == "record",
    }
    return _page(request, "console/explain.html", context)


def simulate_page(request: HttpRequest) -> HttpResponse:
    _require(request, "limits.view_limitrule")
    form = SimulateForm(
        request.GET if "key" in request.GET and "model" in request.GET else None, initial=_given(request)
    )
    simulation = form.answer(timezone.now()) if form.is_bound and form.is_valid() else None
    held = None
    if simulation is not None and simulation.charge is not None:
        held = f"{format_amount(simulation.charge, 2)} {simulation.currency}"
    context = {"title": "Would it be allowed?", "form": form, "simulation": simulation, "held": held}
    if simulation is not None:
        context["key"] = form.cleaned_data["key"]
    return _page(request, "console/simulate.html", context)


def _given(request: HttpRequest) -> dict[str, Any]:
    return {"key": request.GET["key"]} if "key" in request.GET else {}


def _require(request: HttpRequest, permission: str) -> None:
    if not request.user.has_perm(permission):
        raise PermissionDenied


def _page(request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
    return render(request, template, admin.site.each_context(request) | {"opts": LimitRule._meta} | context)
