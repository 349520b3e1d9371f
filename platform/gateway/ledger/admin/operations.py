"""What is under way: holds, the processes that hold them, counters; and settlements that failed for good."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.timesince import timesince
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter
from unfold.decorators import display

from gateway.ledger.admin.facts import FactAdmin, money
from gateway.ledger.admin.filters import ModelFilter, OpenFilter
from gateway.ledger.models import Counter, DeadLetter, Hold, Process
from gateway.ledger.sweeper import LEASE_SECONDS


@admin.register(Hold)
class HoldAdmin(FactAdmin):
    list_display = ["request_id", "tenant", "key", "model", "age", "stream", "tokens", "held", "process_id"]
    list_filter = [("tenant", AutocompleteSelectFilter), ModelFilter]
    list_select_related = ["tenant", "key"]
    ordering = ["request_id"]

    @display(description="age")
    def age(self, hold: Hold) -> str:
        return timesince(hold.started_at)

    @display(description="tokens in + out")
    def tokens(self, hold: Hold) -> str:
        return f"{hold.input_tokens} + {hold.output_tokens}"

    @display(description="held")
    def held(self, hold: Hold) -> str:
        return money(hold.amount, hold.charge_currency)


@admin.register(Process)
class ProcessAdmin(FactAdmin):
    list_display = ["kind", "host", "pid", "state", "started_at", "heartbeat_at", "ended_at", "id"]
    list_filter = ["kind"]
    ordering = ["-heartbeat_at", "id"]

    @display(
        description="state", label={"alive": "success", "late": "warning", "suspected": "danger", "ended": "info"}
    )
    def state(self, process: Process) -> str:
        if process.ended_at is not None:
            return "ended"
        if process.suspected_at is not None and process.suspected_at > process.heartbeat_at:
            return "suspected"
        late = (timezone.now() - process.heartbeat_at).total_seconds() > LEASE_SECONDS
        return "late" if late else "alive"


@admin.register(Counter)
class CounterAdmin(FactAdmin):
    list_display = [
        "scope",
        "owner_id",
        "currency",
        "shard",
        "requests",
        "tokens",
        "charged",
        "held_requests",
        "held_amount",
    ]
    list_filter = [("scope", ChoicesDropdownFilter)]
    ordering = ["id"]

    @display(description="charge")
    def charged(self, counter: Counter) -> str:
        return money(int(counter.charge), counter.currency)

    @display(description="held")
    def held_amount(self, counter: Counter) -> str:
        return money(int(counter.held), counter.currency)


@admin.register(DeadLetter)
class DeadLetterAdmin(FactAdmin):
    list_display = ["request_id", "created_at", "error", "resolved_at"]
    list_filter = [OpenFilter]
    ordering = ["-created_at", "-id"]
    actions = ["mark_resolved"]

    def has_resolve_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.has_perm("ledger.change_deadletter"))

    @admin.action(description="Mark as dealt with", permissions=["resolve"])
    def mark_resolved(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> None:
        count = queryset.filter(resolved_at=None).update(resolved_at=timezone.now())
        self.message_user(request, f"{count} marked as dealt with.", messages.SUCCESS)
