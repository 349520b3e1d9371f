"""The sidebar. Unfold hides every model that a custom sidebar does not list, so what this list does not know
is put into a last group of its own.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest
from django.urls import reverse

from gateway.ledger.models import WorkItem

Entry = tuple[str, str]  # model label, icon

GROUPS: tuple[tuple[str, tuple[Entry, ...]], ...] = (
    ("Customers", (("tenants.Tenant", "apartment"), ("tenants.APIKey", "key"))),
    (
        "Catalogue",
        (
            ("catalogue.Provider", "dns"),
            ("catalogue.Model", "neurology"),
            ("catalogue.Deployment", "account_tree"),
            ("failover.DeploymentHealth", "monitor_heart"),
            ("catalogue.Price", "sell"),
        ),
    ),
    (
        "Limits",
        (
            ("limits.LimitRule", "speed"),
            ("limits.Plan", "inventory_2"),
            ("limits.Credit", "savings"),
            ("limits.Refusal", "do_not_disturb_on"),
            ("limits.LimitCounter", "pin"),
        ),
    ),
    (
        "Books",
        (
            ("ledger.UsageRecord", "receipt_long"),
            ("ledger.Attempt", "alt_route"),
            ("ledger.Adjustment", "edit_note"),
            ("ledger.WorkItem", "assignment_late"),
            ("ledger.DeadLetter", "mark_email_unread"),
        ),
    ),
    (
        "Operations",
        (
            ("ledger.Hold", "pending"),
            ("ledger.Gate", "traffic"),
            ("ledger.Process", "memory"),
            ("ledger.Counter", "pin"),
            ("failover.HealthEvent", "timeline"),
            ("ledger.DriftFinding", "difference"),
            ("replies.KeptReply", "replay"),
            ("limits.LimitWarning", "notification_important"),
            ("limits.Delivery", "outgoing_mail"),
            ("limits.WebhookEndpoint", "webhook"),
        ),
    ),
    (
        "People",
        (("auth.User", "person"), ("auth.Group", "group")),
    ),
)
TITLES = {"ledger.WorkItem": "Work queue", "ledger.Process": "Processes", "ledger.Gate": "Deployment limits"}
MORE_ICON = "table_rows"


def groups(request: HttpRequest) -> list[dict[str, Any]]:
    """Unfold's navigation for this user: only what the user may view."""
    registered = {model._meta.label: model for model in admin.site._registry}
    known = {label for _, entries in GROUPS for label, _ in entries}
    more = tuple((label, MORE_ICON) for label in sorted(set(registered) - known))
    pages = [_page("Dashboard", "dashboard", "admin:index")]
    if request.user.has_perm("ledger.view_usagerecord"):
        pages.append(_page("Live feed", "bolt", "admin:live_feed"))
        pages.append(_page("Export usage", "download", "reports:export"))
        pages.append(_page("Explain a request", "help", "admin:explain"))
    if request.user.has_perm("limits.view_limitrule"):
        pages.append(_page("Would it be allowed?", "science", "admin:simulate"))
    result: list[dict[str, Any]] = [{"title": "", "items": pages}]
    for title, entries in (*GROUPS, ("More", more)):
        items = [
            _model(registered[label], icon)
            for label, icon in entries
            if label in registered and _may_view(registered[label], request)
        ]
        if items:
            result.append({"title": title, "items": items})
    return result


def open_work() -> str:
    """How many items wait in the work queue, counted up to 100; empty if none."""
    count = len(WorkItem.objects.filter(resolved_at=None).values_list("pk")[:100])
    return "" if not count else "99+" if count == 100 else str(count)


def _page(title: str, icon: str, name: str) -> dict[str, Any]:
    return {"title": title, "icon": icon, "link": reverse(name)}


def _model(model: type[Model], icon: str) -> dict[str, Any]:
    meta = model._meta
    name = TITLES.get(meta.label) or str(meta.verbose_name_plural)
    item = {
        "title": name[:1].upper() + name[1:],
        "icon": icon,
        "link": reverse(f"admin:{meta.app_label}_{meta.model_name}_changelist"),
    }
    if model is WorkItem:
        item["badge"] = open_work()
    return item


def _may_view(model: type[Model], request: HttpRequest) -> bool:
    return admin.site._registry[model].has_view_or_change_permission(request)
