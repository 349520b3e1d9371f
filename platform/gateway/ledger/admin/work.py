"""The work queue: records that a person has to look at, oldest first."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.html import format_html
from django.utils.timesince import timesince
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminSelectWidget, UnfoldAdminTextareaWidget

from gateway.ledger.admin.facts import FactAdmin
from gateway.ledger.admin.filters import OpenFilter
from gateway.ledger.models import UsageRecord, WorkItem
from gateway.ledger.services import find_record, rate_unpriced, resolve_unknown

MOST_AT_ONCE = 1000


class ResolveForm(forms.Form):
    answer = forms.ChoiceField(
        choices=[("charged", "Charge it, at the price of its admission"), ("free", "Do not charge it")],
        widget=UnfoldAdminSelectWidget,
    )
    input_tokens = forms.IntegerField(min_value=0, widget=UnfoldAdminIntegerFieldWidget)
    output_tokens = forms.IntegerField(
        min_value=0,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="What is there is the hold's estimate. The provider's report may know better; 0 and 0: no use.",
    )
    reason = forms.CharField(widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}), help_text="Auditors read this.")


@admin.register(WorkItem)
class WorkItemAdmin(FactAdmin):
    list_display = ["kind_label", "record", "tenant", "public_model", "age", "resolved_at", "resolved_by"]
    list_display_links = None
    list_filter = [OpenFilter, ("kind", ChoicesDropdownFilter), ("tenant", AutocompleteSelectFilter)]
    list_select_related = ["tenant", "resolved_by"]
    ordering = ["created_at", "id"]
    actions = ["rate_now"]
    actions_row = ["resolve"]
    fieldsets = [(None, {"fields": ["kind_label", "record", "tenant", "created_at", ("resolved_at", "resolved_by")]})]

    def get_queryset(self, request: HttpRequest) -> QuerySet[WorkItem]:
        record = UsageRecord.objects.filter(request_id=OuterRef("request_id"))
        queryset: QuerySet[WorkItem] = super().get_queryset(request)
        return queryset.annotate(record_model=Subquery(record.values("model")[:1]))

    def has_adjust_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.has_perm("ledger.add_adjustment"))

    @display(description="kind", label={"unpriced": "warning", "unknown": "danger"})
    def kind_label(self, item: WorkItem) -> str:
        return item.kind

    @display(description="record")
    def record(self, item: WorkItem) -> str:
        url = reverse("admin:ledger_usagerecord_change", args=[item.request_id])
        return format_html('<a class="cf-link" href="{}">…{}</a>', url, str(item.request_id)[-8:])

    @display(description="model")
    def public_model(self, item: Any) -> str:
        return item.record_model or ""

    @display(description="age", ordering="created_at")
    def age(self, item: WorkItem) -> str:
        return timesince(item.created_at)

    # ---- answers ----

    @admin.action(description="Rate now, at the price that was in force", permissions=["adjust"])
    def rate_now(self, request: HttpRequest, queryset: QuerySet[WorkItem]) -> None:
        items = list(queryset.filter(kind=WorkItem.Kind.UNPRICED, resolved_at=None).order_by("id")[:MOST_AT_ONCE])
        refusals: dict[str, int] = {}
        for item in items:
            try:
                rate_unpriced(item=item, by=request.user)  # type: ignore[arg-type]
            except ValidationError as exc:
                text = " ".join(exc.messages)
                refusals[text] = refusals.get(text, 0) + 1
        rated = len(items) - sum(refusals.values())
        if rated or not items:
            text = f"{rated} rated." if items else "None of these is open and unpriced."
            self.message_user(request, text, messages.SUCCESS if rated else messages.WARNING)
        for text, count in refusals.items():
            self.message_user(request, f"{count} not rated: {text}", messages.WARNING)

    @action(description="Resolve", url_path="resolve", icon="gavel", permissions=["adjust"])
    def resolve(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """A page for one unknown record: was it used, is it charged, and why."""
        if not self.has_adjust_permission(request):
            raise PermissionDenied
        item = self.get_object(request, object_id)
        if item is None:
            raise Http404
        record = find_record(item.request_id)
        if item.kind != WorkItem.Kind.UNKNOWN or item.resolved_at is not None or record is None:
            text = (
                "Only open records whose process died are resolved by hand. Unpriced ones are rated (action above)."
            )
            return self._back(request, text, messages.WARNING)
        initial = {"input_tokens": record.input_tokens, "output_tokens": record.output_tokens}
        form = ResolveForm(request.POST if request.method == "POST" else None, initial=initial)
        if request.method == "POST" and form.is_valid():
            try:
                self._answer(request, item, form.cleaned_data)
            except ValidationError as exc:
                form.add_error(None, exc.messages)
            else:
                return self._back(request, f"{item.request_id} is resolved.")
        context = {"title": "Resolve", "opts": self.model._meta, "item": item, "record": record, "form": form}
        return render(request, "ledger/resolve.html", self.admin_site.each_context(request) | context)

    def _answer(self, request: HttpRequest, item: WorkItem, data: dict[str, Any]) -> None:
        resolve_unknown(
            item=item,
            charged=data["answer"] == "charged",
            reason=data["reason"],
            by=request.user,  # type: ignore[arg-type]
            input_tokens=data["input_tokens"],
            output_tokens=data["output_tokens"],
        )

    def _back(self, request: HttpRequest, text: str, level: int = messages.SUCCESS) -> HttpResponseRedirect:
        self.message_user(request, text, level)
        return HttpResponseRedirect(reverse("admin:ledger_workitem_changelist"))
