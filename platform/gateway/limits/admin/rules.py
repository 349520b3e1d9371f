"""Limit rules in the admin: what is allowed, what is used of it now, and a raise with an end."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Prefetch, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter
from unfold.decorators import action, display

from gateway.limits.admin.forms import LimitRuleForm, RaiseForm, shown
from gateway.limits.admin.windows import with_use
from gateway.limits.models import Credit, LimitRule
from gateway.limits.wording import kind_of, quantity
from tenants.admin.history import HistoryAdmin

SUBJECT = ("plan", "tenant", "key", "model")
UNCOUNTED = "counted with the next request"  # no counter yet: the desk will start it from the ledger


@admin.register(LimitRule)
class LimitRuleAdmin(HistoryAdmin):
    form = LimitRuleForm
    list_display = ["whom", "kind", "allowed", "used", "held", "left", "mode_label", "hold", "raised", "enabled"]
    list_filter = [
        ("tenant", AutocompleteSelectFilter),
        ("key", AutocompleteSelectFilter),
        ("model", AutocompleteSelectFilter),
        ("plan", AutocompleteSelectFilter),
        ("metric", ChoicesDropdownFilter),
        ("mode", ChoicesDropdownFilter),
        "enabled",
    ]
    search_fields = [
        "tenant__slug",
        "key__name",
        "key__public_id",
        "key__tenant__slug",
        "model__public_id",
        "plan__slug",
    ]
    list_select_related = [*SUBJECT, "key__tenant"]
    ordering = ["-id"]
    autocomplete_fields = ["tenant", "key", "model"]
    readonly_fields = ["use_now", "raise_state", "credit_link"]
    # Only what makes sense for the metric is shown.
    conditional_fields = {
        "per": "metric != 'in_flight'",
        "tokens": "metric == 'tokens'",
        "currency": "metric == 'spend'",
        "hold": "metric == 'tokens' || metric == 'spend'",
        "on_shortage": "metric == 'tokens' || metric == 'spend'",
        "floor": "on_shortage == 'fit' && (metric == 'tokens' || metric == 'spend')",
        "fiscal_day": "per == 'fiscal_month'",
    }
    fieldsets = [
        ("Whom it limits", {"fields": [("plan", "tenant"), ("key", "model")]}),
        ("What it allows", {"fields": [("metric", "tokens"), ("per", "fiscal_day"), ("amount", "currency")]}),
        (
            "How it decides",
            {"fields": [("mode", "enabled"), ("hold", "on_shortage"), "floor", "thresholds"]},
        ),
        ("Now", {"fields": ["use_now", "raise_state", "credit_link"]}),
    ]
    add_fieldsets = [
        (
            "Whom it limits",
            {
                "fields": [("tenant", "key"), "model"],
                "description": "A tenant or one of its keys, for all models or one; or a model, for everybody.",
            },
        ),
        ("What it allows", {"fields": [("metric", "tokens"), ("per", "fiscal_day"), ("amount", "currency")]}),
        ("How it decides", {"fields": [("mode", "enabled"), ("hold", "on_shortage"), "floor", "thresholds"]}),
    ]
    actions_detail = ["raise_until", "end_raise"]
    actions = ["enable", "disable"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        queryset = super().get_queryset(request)
        return with_use(queryset.prefetch_related(Prefetch("credits", queryset=Credit.objects.order_by("id"))))

    def get_readonly_fields(self, request: HttpRequest, obj: LimitRule | None = None) -> list[str]:
        # Another subject is another rule: this one's counters are of what it limits now.
        return [*self.readonly_fields, *SUBJECT] if obj else []

    def get_fieldsets(self, request: HttpRequest, obj: LimitRule | None = None) -> Any:
        return self.fieldsets if obj else self.add_fieldsets

    def why_kept(self, obj: LimitRule) -> str:
        if obj.credits.exists():
            return f"{obj} has credit, which was paid for: it cannot be removed. Disable it instead."
        return ""

    # ---- columns ----

    @display(description="whom", ordering="tenant__slug")
    def whom(self, rule: LimitRule) -> str:
        return f"plan {rule.subject}" if rule.plan_id else rule.subject

    @display(description="what", ordering="metric")
    def kind(self, rule: LimitRule) -> str:
        return kind_of(rule)

    @display(description="allowed")
    def allowed(self, rule: LimitRule) -> str:
        return quantity(rule, self._amount(rule))

    @display(description="used")
    def used(self, rule: Any) -> str:
        if rule.use is None:
            return UNCOUNTED if rule.enabled else "not counted"
        return quantity(rule, int(rule.use["used"]))

    @display(description="held")
    def held(self, rule: Any) -> str:
        return "–" if rule.use is None else quantity(rule, int(rule.use["held"]))

    @display(description="left")
    def left(self, rule: Any) -> str:
        if rule.use is None:
            return "–"
        text = quantity(rule, max(0, self._amount(rule) - int(rule.use["most"])))
        return f"{text} at least, for each of {rule.use['owners']}" if rule.use["owners"] > 1 else text

    @display(description="mode", ordering="mode", label={"enforce": "success", "observe": "info"})
    def mode_label(self, rule: LimitRule) -> str:
        return rule.mode

    @display(description="raised until")
    def raised(self, rule: LimitRule) -> str:
        return f"{rule.raised_until:%Y-%m-%d %H:%M} UTC" if self._is_raised(rule) else ""

    @display(description="in this window")
    def use_now(self, rule: Any) -> str:
        if rule.use is None:
            return f"{self.used(rule)}, {self.allowed(rule)} allowed".capitalize()
        return f"{self.used(rule)} used, {self.held(rule)} held, {self.left(rule)} left of {self.allowed(rule)}"

    @display(description="raise")
    def raise_state(self, rule: LimitRule) -> str:
        if not self._is_raised(rule):
            return "Not raised."
        return f"{quantity(rule, rule.raised_amount or 0)} until {rule.raised_until:%Y-%m-%d %H:%M} UTC."

    @display(description="credit")
    def credit_link(self, rule: LimitRule) -> str:
        if rule.metric != "spend" or rule.per != "total" or rule.plan_id:
            return "Only limits of one tenant's or key's spend in total have credit."
        return format_html(
            '<a class="cf-link" href="{}?rule__id__exact={}">Its top-ups</a> · '
            '<a class="cf-link" href="{}?rule={}">Top up</a>',
            reverse("admin:limits_credit_changelist"),
            rule.pk,
            reverse("admin:limits_credit_add"),
            rule.pk,
        )

    def _amount(self, rule: LimitRule) -> int:
        now = timezone.now()
        live = (c for c in rule.credits.all() if c.closed_at or c.expires_at is None or now < c.expires_at)
        return rule.amount_at(now) + sum(credit.amount - credit.expired_amount for credit in live)

    def _is_raised(self, rule: LimitRule) -> bool:
        return rule.raised_until is not None and timezone.now() < rule.raised_until

    # ---- actions ----

    @admin.action(description="Enable", permissions=["change"])
    def enable(self, request: HttpRequest, queryset: QuerySet[LimitRule]) -> None:
        self._switch(request, queryset, True)

    @admin.action(description="Disable: nothing is counted or refused", permissions=["change"])
    def disable(self, request: HttpRequest, queryset: QuerySet[LimitRule]) -> None:
        self._switch(request, queryset, False)

    def _switch(self, request: HttpRequest, queryset: QuerySet[LimitRule], enabled: bool) -> None:
        rules = list(queryset.filter(enabled=not enabled))
        for rule in rules:  # one by one: each has a line in its history
            rule.enabled = enabled
            rule.save(update_fields=["enabled"])
        self.message_user(request, f"{len(rules)} {'enabled' if enabled else 'disabled'}.", messages.SUCCESS)

    @action(description="Raise until …", url_path="raise", icon="trending_up", permissions=["change"])
    def raise_until(self, request: HttpRequest, object_id: str) -> HttpResponse:
        rule = self._rule(request, object_id)
        form = RaiseForm(request.POST if request.method == "POST" else None, rule=rule, now=timezone.now())
        if request.method == "POST" and form.is_valid():
            rule.raised_amount, rule.raised_until = form.cleaned_data["amount"], form.cleaned_data["until"]
            rule.save(update_fields=["raised_amount", "raised_until"])
            text = (
                f"Raised to {quantity(rule, rule.raised_amount or 0)} until {rule.raised_until:%Y-%m-%d %H:%M} UTC."
            )
            return self._back(request, rule, text)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.model._meta,
            "original": rule,
            "title": "Raise this limit for a while",
            "rule": rule,
            "allowed": f"{shown(rule, rule.amount)} {rule.currency}".strip(),
            "form": form,
        }
        return render(request, "limits/raise.html", context)

    @action(description="End the raise", url_path="raise/end", icon="trending_flat", permissions=["change"])
    def end_raise(self, request: HttpRequest, object_id: str) -> HttpResponse:
        rule = self._rule(request, object_id)
        if not self._is_raised(rule):
            return self._back(request, rule, "It is not raised.", messages.WARNING)
        if request.method != "POST":
            context = {"opts": self.model._meta, "original": rule, "title": "End the raise?", "rule": rule}
            return render(request, "limits/raise.html", self.admin_site.each_context(request) | context)
        rule.raised_amount = rule.raised_until = None
        rule.save(update_fields=["raised_amount", "raised_until"])
        return self._back(request, rule, f"Back to {quantity(rule, rule.amount)}, from the next request on.")

    def _rule(self, request: HttpRequest, object_id: str) -> LimitRule:
        rule: LimitRule | None = self.get_object(request, object_id)
        if rule is None:
            raise Http404
        if not self.has_change_permission(request, rule):
            raise PermissionDenied
        return rule

    def _back(
        self, request: HttpRequest, rule: LimitRule, text: str, level: int = messages.SUCCESS
    ) -> HttpResponseRedirect:
        self.message_user(request, text, level)
        if level == messages.SUCCESS:
            self.log_change(request, rule, text)
        return HttpResponseRedirect(reverse("admin:limits_limitrule_change", args=[rule.pk]))
