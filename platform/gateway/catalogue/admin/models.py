"""Models and their deployments in the admin."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import Count, Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html
from unfold.admin import TabularInline
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import action, display

from gateway.catalogue.admin.providers import TIMEOUTS
from gateway.catalogue.models import Deployment, Model, Price
from gateway.catalogue.services import check_fallbacks, check_names
from tenants.admin.fields import LinesField
from tenants.admin.history import HistoryAdmin

ROUTING = ("strategy", "max_attempts", "retry_within_s")


class ModelForm(forms.ModelForm[Model]):
    aliases = LinesField(required=False, help_text="Further names that clients may use, one a line.")
    fallbacks = LinesField(
        required=False,
        help_text="Models that answer when no deployment of this one can, one a line, the first first.",
    )
    capabilities = LinesField(required=False, help_text="Such as vision or tools, one a line. For people to read.")

    class Meta:
        model = Model
        fields = [
            "public_id",
            "aliases",
            "owned_by",
            "context_window",
            "max_output_tokens",
            "capabilities",
            "reasoning_field",
            "refuse_unpriced",
            "strategy",
            "sticky",
            "fallbacks",
            "max_attempts",
            "retry_within_s",
            *TIMEOUTS,
            "enabled",
        ]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ROUTING:
            self.fields[name].required = False  # empty: the default

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        data |= {name: getattr(Model(), name) for name in ROUTING if data.get(name) in (None, "")}
        public_id = data.get("public_id") or self.instance.public_id
        if public_id and "aliases" in data:
            try:
                check_names(pk=self.instance.pk, public_id=public_id, aliases=data["aliases"])
            except ValidationError as exc:
                # On the change page the id cannot be edited, so it has no field to show an error at.
                raise ValidationError(exc.messages) from exc
        if public_id and "fallbacks" in data:
            check_fallbacks(public_id=public_id, fallbacks=data["fallbacks"])
        return data


class DeploymentInline(TabularInline):
    model = Deployment
    fields = ["provider", "upstream_model", "priority", "weight", "rpm", "tpm", "max_in_flight", "enabled"]
    autocomplete_fields = ["provider"]
    extra = 0
    can_delete = False
    verbose_name_plural = "deployments: the lowest priority number is called first, weight shares among equals"


@admin.register(Model)
class CatalogueModelAdmin(HistoryAdmin):
    form = ModelForm
    list_display = ["public_id", "owned_by", "context_window", "max_output_tokens", "served", "priced", "enabled"]
    list_filter = ["enabled", "owned_by"]
    search_fields = ["public_id", "owned_by"]
    ordering = ["public_id"]  # Meta's does not hold for a query that groups
    readonly_fields = ["prices_link"]
    fieldsets = [
        (None, {"fields": ["public_id", ("owned_by", "enabled"), ("aliases", "capabilities")]}),
        ("Limits", {"fields": [("context_window", "max_output_tokens")]}),
        ("Behaviour", {"fields": ["reasoning_field", "refuse_unpriced", "prices_link"]}),
        ("Routing", {"fields": [("strategy", "sticky"), ("max_attempts", "retry_within_s"), "fallbacks"]}),
        ("Time-outs", {"fields": [TIMEOUTS[:2], TIMEOUTS[2:]]}),
    ]
    inlines = [DeploymentInline]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Model]:
        queryset: QuerySet[Model] = super().get_queryset(request)
        list_prices = Price.objects.filter(model=OuterRef("pk"), side=Price.Side.CHARGE)
        live = Q(deployments__enabled=True, deployments__provider__enabled=True)
        return queryset.annotate(has_price=Exists(list_prices), live_deployments=Count("deployments", filter=live))

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        # Records, exports and clients name the model by its id; a new name is an alias.
        return [*self.readonly_fields, "public_id"] if obj else self.readonly_fields

    @display(description="deployments", ordering="live_deployments")
    def served(self, model: Any) -> str:
        if not model.live_deployments and model.fallbacks:
            return "none: left to its fallbacks"
        return str(model.live_deployments) if model.live_deployments else "none: cannot be called"

    @display(description="priced", boolean=True, ordering="has_price")
    def priced(self, model: Any) -> bool:
        return bool(model.has_price)

    @display(description="prices")
    def prices_link(self, model: Model) -> str:
        if model.pk is None:
            return "After saving, add prices under Prices."
        return format_html(
            '<a class="cf-link" href="{}?model__id__exact={}">Its prices</a> · '
            '<a class="cf-link" href="{}?model={}">Add a price</a>',
            reverse("admin:catalogue_price_changelist"),
            model.pk,
            reverse("admin:catalogue_price_add"),
            model.pk,
        )

    def why_kept(self, obj: Model) -> str:
        if obj.deployments.exists() or obj.prices.exists():
            return f"{obj} has deployments or prices, which usage is booked on: it cannot be deleted. Disable it."
        return ""


@admin.register(Deployment)
class DeploymentAdmin(HistoryAdmin):
    list_display = ["model", "provider", "upstream_model", "priority", "weight", "enabled"]
    list_filter = [("model", AutocompleteSelectFilter), ("provider", AutocompleteSelectFilter), "enabled"]
    search_fields = ["model__public_id", "provider__name", "upstream_model"]
    list_select_related = ["model", "provider"]
    autocomplete_fields = ["model", "provider"]
    fieldsets = [
        (None, {"fields": [("model", "provider"), "upstream_model", ("priority", "weight"), "enabled"]}),
        ("Its own limits", {"fields": [("rpm", "tpm", "max_in_flight")]}),
        ("Health", {"fields": ["probe_every_s"]}),
    ]
    actions_detail = ["send_test_request"]
    actions_row = ["send_test_request"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Deployment]:
        queryset: QuerySet[Deployment] = super().get_queryset(request)
        return queryset.defer("provider__credential")

    def get_readonly_fields(self, request: HttpRequest, obj: Deployment | None = None) -> list[str]:
        # Records name the deployment: what it is a deployment of does not change under them.
        return ["model", "provider"] if obj else []

    def has_delete_permission(self, request: HttpRequest, obj: Deployment | None = None) -> bool:
        return False

    def why_kept(self, obj: Deployment) -> str:
        return f"{obj} cannot be deleted: usage may be booked on it. Disable it instead."

    @action(description="Send a test request", url_path="try", icon="send", permissions=["change"])
    def send_test_request(self, request: HttpRequest, object_id: str) -> HttpResponseRedirect:
        return HttpResponseRedirect(reverse("admin:test_deployment", args=[object_id]))
