"""What the admin of every configuration model shares: deletions that say no politely, and a history to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib import messages
from django.contrib.admin import ShowFacets
from django.contrib.admin.widgets import AutocompleteSelect
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from simple_history.admin import SimpleHistoryAdmin
from unfold.admin import ModelAdmin


class CarefulAutocomplete(AutocompleteSelect):
    """Django's fails when a refused form is shown again with what is no id; here that selects nothing."""

    def optgroups(self, name: str, value: Sequence[Any], attr: Any = None) -> Any:
        return super().optgroups(name, [one for one in value if self._is_id(one)], attr)

    def _is_id(self, value: Any) -> bool:
        try:
            self.field.target_field.clean(value, None)
        except ValidationError:
            return False
        return True


class KeptAdmin(ModelAdmin):
    """Unfold's admin, in which what the books point at cannot be deleted."""

    compressed_fields = True
    warn_unsaved_form = True
    list_filter_submit = True
    show_full_result_count = False
    show_facets = ShowFacets.NEVER  # a count of all rows for each choice

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Without "delete selected": one at a time, so that each refusal can say why."""
        actions: dict[str, Any] = super().get_actions(request)
        actions.pop("delete_selected", None)
        return actions

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if "widget" not in kwargs and db_field.name in self.get_autocomplete_fields(request):
            kwargs["widget"] = CarefulAutocomplete(db_field, self.admin_site, using=kwargs.get("using"))
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def why_kept(self, obj: Any) -> str:
        """Why this object cannot be deleted, and what to do instead; empty if it can."""
        return ""

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        obj = self.get_object(request, object_id)
        reason = self.why_kept(obj) if obj is not None else ""
        if not reason:
            response: HttpResponse = super().delete_view(request, object_id, extra_context)
            return response
        if not self.has_view_or_change_permission(request, obj):
            raise PermissionDenied
        self.message_user(request, reason, messages.WARNING)
        meta = self.model._meta
        return HttpResponseRedirect(reverse(f"admin:{meta.app_label}_{meta.model_name}_change", args=[object_id]))


class HistoryAdmin(SimpleHistoryAdmin, KeptAdmin):
    """Reverting would write an old row back whole: a revoked key would live again, a credential would go."""

    def revert_disabled(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return True

    def history_form_view(
        self, request: HttpRequest, object_id: str, version_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if request.method not in ("GET", "HEAD"):
            raise PermissionDenied("A former version can be looked at, not restored.")
        response: HttpResponse = super().history_form_view(request, object_id, version_id, extra_context)
        return response
