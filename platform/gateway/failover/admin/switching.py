"""The page that asks before a deployment is switched: what it means, and why it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from unfold.widgets import UnfoldAdminTextInputWidget

from gateway.failover import services, standings
from gateway.failover.models import Circuit, DeploymentHealth, HealthEvent

MOST_AT_ONCE = 100


class Verb(NamedTuple):
    title: str
    meaning: str
    done: str
    service: Callable[..., Circuit]
    reason_required: bool
    variant: str = "primary"


VERBS = {
    "take-out": Verb(
        "Take out of rotation?",
        "Within a second no process calls it any more, not even to probe it. Requests under way end as they would.",
        "taken out of rotation",
        services.take_out,
        True,
        "danger",
    ),
    "always-try": Verb(
        "Always try?",
        "It is called in its turn however often it fails. Its breaker does not open until it is put back.",
        "always tried from now on",
        services.always_try,
        True,
        "danger",
    ),
    "put-back": Verb(
        "Put back?",
        "Its answers decide again whether it is called. What failed before is forgotten.",
        "back in rotation",
        services.put_back,
        False,
    ),
    "forget": Verb(
        "Forget its failures?",
        "The breaker closes: requests go to it at once, as if nothing had failed. It opens again if they fail.",
        "called again",
        services.forget_failures,
        False,
    ),
}


class SwitchForm(forms.Form):
    reason = forms.CharField(
        max_length=200, widget=UnfoldAdminTextInputWidget(), help_text="For the history, which your colleagues read."
    )

    def __init__(self, *args: Any, required: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["reason"].required = required


def ask(verb: str, ids: Iterable[Any]) -> HttpResponseRedirect:
    """To the page, for these deployments."""
    query = urlencode({"ids": ",".join(str(pk) for pk in list(ids)[:MOST_AT_ONCE])})
    return HttpResponseRedirect(f"{reverse('admin:failover_switch', args=[verb])}?{query}")


def page(model_admin: Any, request: HttpRequest, name: str) -> HttpResponse:
    if not model_admin.has_switch_permission(request):
        raise PermissionDenied
    verb = VERBS.get(name)
    deployments = _chosen(request)
    if verb is None or not deployments:
        raise Http404
    form = SwitchForm(request.POST if request.method == "POST" else None, required=verb.reason_required)
    if request.method == "POST" and form.is_valid():
        for deployment in deployments:
            _switch(model_admin, request, verb, deployment, form.cleaned_data["reason"])
        return HttpResponseRedirect(_back(deployments))
    context = {
        "title": verb.title,
        "opts": DeploymentHealth._meta,
        "verb": verb,
        "rows": [
            (deployment, standings.state_of(getattr(deployment, "circuit", None)).label) for deployment in deployments
        ],
        "alone": _left_alone(deployments) if name == "take-out" else [],
        "form": form,
        "back": _back(deployments),
    }
    return render(request, "failover/switch.html", model_admin.admin_site.each_context(request) | context)


def _switch(model_admin: Any, request: HttpRequest, verb: Verb, deployment: DeploymentHealth, reason: str) -> None:
    try:
        verb.service(deployment=deployment, by=request.user, reason=reason)
    except ValidationError as exc:
        model_admin.message_user(request, " ".join(exc.messages), messages.WARNING)
    else:
        model_admin.message_user(request, f"{deployment}: {verb.done}.", messages.SUCCESS)
        model_admin.log_change(request, deployment, f"{verb.done}: {reason}")


def _chosen(request: HttpRequest) -> list[DeploymentHealth]:
    ids = [int(pk) for pk in request.GET.get("ids", "").split(",") if pk.isdecimal() and len(pk) < 19]
    found = DeploymentHealth.objects.filter(pk__in=ids).select_related("model", "provider", "circuit")
    return list(found.defer("provider__credential").order_by("model__public_id", "priority", "pk"))


def _left_alone(deployments: list[DeploymentHealth]) -> list[str]:
    """What it means for models that have no other deployment that is in rotation."""
    now = timezone.now()
    others = DeploymentHealth.objects.filter(standings.SERVED).exclude(pk__in=[one.pk for one in deployments])
    well = others.filter(standings.in_state(HealthEvent.State.CLOSED, now) | standings.in_state("always", now))
    served = set(well.values_list("model_id", flat=True))
    models = {one.model_id: one.model for one in deployments if one.model_id not in served}
    return [
        f"{model.public_id} has no other deployment in rotation: "
        + (f"{', '.join(model.fallbacks)} will be asked instead." if model.fallbacks else "it will be refused.")
        for model in models.values()
    ]


def _back(deployments: list[DeploymentHealth]) -> str:
    if len(deployments) == 1:
        return reverse("admin:failover_deploymenthealth_change", args=[deployments[0].pk])
    return reverse("admin:failover_deploymenthealth_changelist")
