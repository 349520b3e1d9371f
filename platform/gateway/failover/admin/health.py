"""Health: every deployment with its state, and one page each with history and switches. Nothing is edited here."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter, DropdownFilter
from unfold.decorators import action, display

from gateway.failover import standings
from gateway.failover.admin import switching
from gateway.failover.models import Circuit, DeploymentHealth, HealthEvent
from gateway.ledger.admin.facts import FactAdmin, unbroken

EVENTS_SHOWN = 25
DISABLED = "disabled"
LABELS = {
    "in rotation": "success",
    "open": "danger",
    "half-open": "warning",
    "resting": "warning",
    "taken out": "danger",
    "always tried": "info",
    DISABLED: "",
}


class StateFilter(DropdownFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [*((str(value), str(label)) for value, label in HealthEvent.State.choices), (DISABLED, DISABLED)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value == DISABLED:
            return queryset.exclude(standings.SERVED)
        if value not in HealthEvent.State.values:
            return queryset
        return queryset.filter(standings.SERVED & standings.in_state(value, timezone.now()))


@admin.register(DeploymentHealth)
class DeploymentHealthAdmin(FactAdmin):
    list_display = ["name", "upstream_model", "state", "since", "why", "failing", "next_probe"]
    list_filter = [StateFilter, ("model", AutocompleteSelectFilter), ("provider", AutocompleteSelectFilter)]
    search_fields = ["model__public_id", "provider__name", "upstream_model"]
    list_select_related = ["model", "provider", "circuit"]
    fieldsets = [
        (None, {"fields": [("name", "upstream_model"), ("state", "since"), "why", ("failing", "next_probe")]}),
        ("Active probes", {"fields": ["active_probes"]}),
        ("History", {"fields": ["events"]}),
    ]
    actions = ["take_out_selected", "put_back_selected", "forget_selected"]
    actions_detail = ["take_out", "always_try", "put_back", "forget"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Not the parent's, which would sort by what is computed here."""
        related = DeploymentHealth.objects.select_related(*self.list_select_related)
        return standings.with_health(related).defer("provider__credential").order_by(*self.get_ordering(request))

    def get_ordering(self, request: HttpRequest) -> list[str]:
        return ["rank", "model__public_id", "priority", "id"]  # Django's check does not know computed columns

    def has_switch_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.has_perm("failover.change_deploymenthealth"))

    # ---- columns ----

    @display(description="deployment", ordering="model__public_id")
    def name(self, deployment: DeploymentHealth) -> str:
        return str(deployment)

    @display(description="state", label=LABELS)
    def state(self, deployment: Any) -> str:
        if not (deployment.enabled and deployment.provider.enabled and deployment.model.enabled):
            return DISABLED
        return standings.state_of(_circuit(deployment)).label

    @display(description="since")
    def since(self, deployment: Any) -> str | SafeString:
        circuit = _circuit(deployment)
        if circuit is None:
            return "–"
        return unbroken(f"{circuit.since:%Y-%m-%d %H:%M:%S}, {timesince(circuit.since, depth=1)}")

    @display(description="why")
    def why(self, deployment: Any) -> str:
        circuit = _circuit(deployment)
        if circuit is None:
            return "–"
        if circuit.forced:
            return f"{circuit.forced_by}: {circuit.forced_reason}"
        if circuit.reason:
            return circuit.reason
        resting = standings.state_of(circuit) == HealthEvent.State.RESTING
        return "the provider asked for a pause" if resting else "–"

    @display(description="failed, last 30 s")
    def failing(self, deployment: Any) -> str:
        good, bad = deployment.good or 0, deployment.bad or 0
        return f"{bad} of {good + bad} ({100 * bad // (good + bad)} %)" if bad else "none"

    @display(description="next tried")
    def next_probe(self, deployment: Any) -> str:
        return standings.next_probe(_circuit(deployment)) or "–"

    @display(description="asked for its models")
    def active_probes(self, deployment: Any) -> str:
        circuit = _circuit(deployment)
        if deployment.probe_every_s is None:
            return "Off. Requests tell whether it is healthy; its deployment's page has the interval."
        if circuit is None or circuit.probed_at is None:
            return f"Every {deployment.probe_every_s} s; not yet asked."
        outcome = circuit.probe_outcome or "no answer yet"
        return f"Every {deployment.probe_every_s} s; last at {circuit.probed_at:%Y-%m-%d %H:%M:%S} UTC: {outcome}."

    @display(description="events")
    def events(self, deployment: Any) -> SafeString:
        found = HealthEvent.objects.filter(deployment_id=deployment.pk).order_by("-id")[: EVENTS_SHOWN + 1]
        query = urlencode({"deployment__id__exact": deployment.pk})
        more = f"{reverse('admin:failover_healthevent_changelist')}?{query}" if len(found) > EVENTS_SHOWN else ""
        context = {"events": found[:EVENTS_SHOWN], "more": more}
        return render_to_string("failover/events.html", context)

    # ---- switches ----

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.switch_view)
        urls: list[URLPattern] = super().get_urls()
        return [path("switch/<slug:verb>/", view, name="failover_switch"), *urls]

    def switch_view(self, request: HttpRequest, verb: str) -> HttpResponse:
        return switching.page(self, request, verb)

    @action(description="Take out of rotation", url_path="out", icon="block", permissions=["switch"])
    def take_out(self, request: HttpRequest, object_id: str) -> HttpResponseRedirect:
        return switching.ask("take-out", [object_id])

    @action(description="Always try", url_path="always", icon="priority", permissions=["switch"])
    def always_try(self, request: HttpRequest, object_id: str) -> HttpResponseRedirect:
        return switching.ask("always-try", [object_id])

    @action(description="Put back", url_path="back", icon="undo", permissions=["switch"])
    def put_back(self, request: HttpRequest, object_id: str) -> HttpResponseRedirect:
        return switching.ask("put-back", [object_id])

    @action(description="Forget failures", url_path="forget", icon="restart_alt", permissions=["switch"])
    def forget(self, request: HttpRequest, object_id: str) -> HttpResponseRedirect:
        return switching.ask("forget", [object_id])

    @admin.action(description="Take out of rotation", permissions=["switch"])
    def take_out_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponseRedirect:
        return switching.ask("take-out", queryset.values_list("pk", flat=True))

    @admin.action(description="Put back: their answers decide again", permissions=["switch"])
    def put_back_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponseRedirect:
        return switching.ask("put-back", queryset.values_list("pk", flat=True))

    @admin.action(description="Forget failures: call them again at once", permissions=["switch"])
    def forget_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponseRedirect:
        return switching.ask("forget", queryset.values_list("pk", flat=True))


@admin.register(HealthEvent)
class HealthEventAdmin(FactAdmin):
    list_display = ["when", "deployment", "before", "after", "reason", "who"]
    list_display_links = None
    list_filter = [("deployment", AutocompleteSelectFilter), ("after", ChoicesDropdownFilter)]
    list_select_related = ["deployment__model", "deployment__provider"]
    ordering = ["-id"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[HealthEvent]:
        queryset: QuerySet[HealthEvent] = super().get_queryset(request)
        return queryset.defer("deployment__provider__credential")

    @display(description="at (UTC)")
    def when(self, event: HealthEvent) -> SafeString:
        return unbroken(f"{event.at:%Y-%m-%d %H:%M:%S}")

    @display(description="through")
    def who(self, event: HealthEvent) -> str:
        return event.person or event.process


def _circuit(deployment: Any) -> Circuit | None:
    return getattr(deployment, "circuit", None)  # Django raises where there is no row
