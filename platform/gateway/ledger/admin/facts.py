"""What all lists of facts share: nothing can be written, nothing is counted, no query runs for long."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.admin import ShowFacets
from django.core.paginator import Page
from django.db import OperationalError, connection, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.html import format_html
from django.utils.safestring import SafeString
from psycopg.errors import QueryCanceled
from unfold import paginator
from unfold.admin import ModelAdmin

from gateway.catalogue.pricing import format_amount

PAGES = 200
LIST_TIMEOUT_MS = 4000


class InfinitePaginator(paginator.InfinitePaginator):
    """Previous and next, without a count; deep pages read all that they skip, so they end. Filters go further.

    Unfold's templates know it by its name, and then show no count.
    """

    @property
    def count(self) -> int:
        return int(self.per_page) * PAGES

    def _get_page(self, *args: Any, **kwargs: Any) -> Page[Any]:
        page: Page[Any] = paginator.InfinitePage(*args, **kwargs)
        return page


class FactAdmin(ModelAdmin):
    """Read-only, ordered by key, paged without COUNT(*)."""

    paginator = InfinitePaginator
    show_full_result_count = False
    list_per_page = 50
    list_filter_submit = True
    sortable_by = ()
    show_facets = ShowFacets.NEVER  # they would count the whole ledger once for each choice
    list_fullwidth = True
    actions: Any = None
    compressed_fields = True

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Without the link to a history: facts have none."""
        context = {"show_history": False} | (extra_context or {})
        response: HttpResponse = super().changeform_view(request, object_id, form_url, context)
        return response

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """One open snapshot for long slows the whole desk down (design.md 2), so a list may not take it."""
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT set_config('statement_timeout', %s, true)", [str(LIST_TIMEOUT_MS)])
                response: HttpResponse = super().changelist_view(request, extra_context)
                if hasattr(response, "render"):
                    response.render()
                return response
        except OperationalError as exc:
            if not isinstance(exc.__cause__, QueryCanceled) or not request.GET:
                raise
        text = "That took too long. Narrow it down, best by day: then only those days are read."
        self.message_user(request, text, messages.WARNING)
        return HttpResponseRedirect(request.path)


def money(nano: int | None, currency: str) -> str:
    return "unpriced" if nano is None else f"{format_amount(nano)} {currency}"


def unbroken(text: str) -> SafeString:
    return format_html('<span class="cf-nowrap">{}</span>', text)
