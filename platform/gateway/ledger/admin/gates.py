"""What deployments with limits of their own have in use at this moment."""

from __future__ import annotations

import time
from typing import Any

from django.contrib import admin
from django.db import connection
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from unfold.decorators import display

from gateway.catalogue.models import Deployment
from gateway.ledger.admin.facts import FactAdmin
from gateway.ledger.gates import Gate, live

_RUNNING = """
SELECT deployment_id, count(*) FROM ledger_hold WHERE gate_second IS NOT NULL AND deployment_id = ANY (%s) GROUP BY 1
"""


@admin.register(Gate)
class GateAdmin(FactAdmin):
    list_display = ["deployment", "requests_now", "tokens_now", "running_now"]
    list_display_links = None
    ordering = ["deployment_id"]

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """With the deployments of this page and what runs there, in a query each."""
        changelist = super().get_changelist_instance(request)
        ids = [gate.pk for gate in changelist.result_list]
        deployments = (
            Deployment.objects.select_related("model", "provider").defer("provider__credential").in_bulk(ids)
        )
        with connection.cursor() as cursor:
            cursor.execute(_RUNNING, [ids])
            running = dict(cursor.fetchall())
        at = int(time.time())
        for gate in changelist.result_list:
            gate.its, gate.at, gate.running = deployments.get(gate.pk), at, running.get(gate.pk, 0)
        return changelist

    @display(description="deployment")
    def deployment(self, gate: Any) -> str:
        if gate.its is None:
            return f"removed ({gate.pk})"
        url = reverse("admin:catalogue_deployment_change", args=[gate.pk])
        return format_html('<a class="cf-link" href="{}">{} ({})</a>', url, gate.its, gate.pk)

    @display(description="requests in the last minute")
    def requests_now(self, gate: Any) -> str:
        return _of(live(gate.requests, gate.slot_at, gate.at), gate.its and gate.its.rpm)

    @display(description="tokens in the last minute")
    def tokens_now(self, gate: Any) -> str:
        return _of(live(gate.tokens, gate.slot_at, gate.at), gate.its and gate.its.tpm)

    @display(description="in flight")
    def running_now(self, gate: Any) -> str:
        return _of(gate.running, gate.its and gate.its.max_in_flight)


def _of(used: int, limit: int | None) -> str:
    return f"{used:,} of {limit:,}" if limit else f"{used:,}, not limited"
