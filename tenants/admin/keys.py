"""API keys in the admin: issue, rotate, revoke. The secret is shown once, on a page of its own."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Exists, OuterRef, Prefetch, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.admin import TabularInline
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import action, display
from unfold.enums import ActionVariant
from unfold.widgets import UnfoldAdminSelectWidget

from tenants.admin import handover
from tenants.admin.fields import LinesField, limits_of
from tenants.admin.history import HistoryAdmin
from tenants.models import APIKey, KeySecret
from tenants.services import check_issuable, issue_key, revoke_key, rotate_key

OVERLAPS = {
    "0": "none: the old secret stops now",
    "3600": "1 hour",
    "86400": "1 day",
    "604800": "7 days",
    "2592000": "30 days",
}


class APIKeyForm(forms.ModelForm[APIKey]):
    allowed_models = LinesField(
        label="Allowed models",
        required=False,
        initial=["*"],
        help_text="Narrows what the tenant may call: one id or pattern a line. * is all of it; empty is none.",
    )

    class Meta:
        model = APIKey
        fields = ["tenant", "name", "expires_at", "allowed_models"]

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if self.instance.pk is None and data.get("tenant") is not None:
            check_issuable(tenant=data["tenant"], expires_at=data.get("expires_at"))
        return data


class RotateForm(forms.Form):
    overlap = forms.ChoiceField(
        choices=list(OVERLAPS.items()),
        initial="86400",
        widget=UnfoldAdminSelectWidget,
        help_text="For so long both secrets work, so that clients can change over without a refused request.",
    )


class SecretInline(TabularInline):
    model = KeySecret
    fields = readonly_fields = ["hint", "created_at", "expires_at", "imported"]
    extra = 0
    can_delete = False
    verbose_name_plural = "secrets"
    hide_title = True

    def has_add_permission(self, request: HttpRequest, obj: APIKey | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: APIKey | None = None) -> bool:
        return False

    @display(description="ends in")
    def hint(self, secret: KeySecret) -> str:
        return str(secret)


@admin.register(APIKey)
class APIKeyAdmin(HistoryAdmin):
    form = APIKeyForm
    list_display = [
        "name",
        "tenant",
        "public_id",
        "ends_in",
        "state",
        "models",
        "expires_at",
        "last_used_at",
        "created_at",
    ]
    list_filter = [("tenant", AutocompleteSelectFilter), "status", "expires_at"]
    search_fields = ["public_id", "name", "tenant__slug"]
    search_help_text = "Public id, last four characters, name or tenant"
    list_select_related = ["tenant"]
    ordering = ["-id"]  # newest first, by an index
    autocomplete_fields = ["tenant"]
    fieldsets = [
        (None, {"fields": [("tenant", "name"), "expires_at", "allowed_models"]}),
        ("State", {"fields": [("public_id", "state"), ("created_by", "created_at"), ("last_used_at", "revoked_at")]}),
        ("Limits", {"fields": ["limits_link"]}),
    ]
    add_fieldsets = [(None, {"fields": [("tenant", "name"), "expires_at", "allowed_models"]})]
    inlines = [SecretInline]
    actions_detail = ["rotate", "revoke"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[APIKey]:
        secrets = Prefetch("secrets", queryset=KeySecret.objects.order_by("-created_at", "-id"))
        queryset: QuerySet[APIKey] = super().get_queryset(request)
        return queryset.prefetch_related(secrets)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[APIKey], search_term: str
    ) -> tuple[QuerySet[APIKey], bool]:
        """Indexed look-ups for ids and last four characters; a pasted key is found by the id within it."""
        term = search_term.strip().removeprefix("sk-cf-").partition("-")[0].removeprefix("…")
        if not term:
            return queryset, False
        found = (
            Q(name__icontains=search_term.strip()) | Q(public_id__startswith=term) | Q(tenant__slug__startswith=term)
        )
        if len(term) == 4:
            found |= Q(Exists(KeySecret.objects.filter(key=OuterRef("pk"), last4=term)))
        return queryset.filter(found), False

    def get_readonly_fields(self, request: HttpRequest, obj: APIKey | None = None) -> list[str]:
        if obj is None:
            return []
        return [
            "tenant",
            "public_id",
            "state",
            "created_by",
            "created_at",
            "last_used_at",
            "revoked_at",
            "limits_link",
        ]

    def get_inlines(self, request: HttpRequest, obj: APIKey | None) -> list[type[TabularInline]]:
        return self.inlines if obj else []

    def has_delete_permission(self, request: HttpRequest, obj: APIKey | None = None) -> bool:
        return False

    def why_kept(self, obj: APIKey) -> str:
        return f"{obj} cannot be deleted: usage is booked on it. Revoke it instead."

    # ---- columns ----

    @display(description="ends in")
    def ends_in(self, key: APIKey) -> str:
        newest = next(iter(key.secrets.all()), None)
        return str(newest) if newest else ""

    @display(description="state", label={"active": "success", "revoked": "danger", "expired": "warning"})
    def state(self, key: APIKey) -> str:
        return "expired" if key.status == APIKey.Status.ACTIVE and not key.is_live() else key.status

    @display(description="models")
    def models(self, key: APIKey) -> str:
        return ", ".join(key.allowed_models) or "none"

    @display(description="limits")
    def limits_link(self, key: APIKey) -> str:
        url = f"{reverse('admin:simulate')}?key={key.public_id}"
        ask = format_html('<a class="cf-link" href="{}">Would it be allowed?</a>', url)
        return format_html("{} · {}", limits_of("key", key.pk), ask)

    # ---- issuing ----

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        only_save = {"show_save_and_add_another": False, "show_save_and_continue": False, "title": "Issue an API key"}
        return super().add_view(request, form_url, (extra_context or {}) | only_save)  # type: ignore[no-any-return]

    def save_model(self, request: HttpRequest, obj: Any, form: forms.Form, change: bool) -> None:
        if change:
            super().save_model(request, obj, form, change)
            return
        key, obj.issued_secret = issue_key(
            tenant=obj.tenant,
            name=obj.name,
            expires_at=obj.expires_at,
            allowed_models=obj.allowed_models,
            created_by=request.user,  # type: ignore[arg-type]
        )
        obj.pk, obj.public_id, obj._state.adding = key.pk, key.public_id, False

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: str | None = None) -> HttpResponse:
        return handover.give(request, obj.issued_secret, reverse("admin:tenants_apikey_secret", args=[obj.pk]))

    def get_urls(self) -> list[URLPattern]:
        page = path("<int:pk>/secret/", self.admin_site.admin_view(self.secret_page), name="tenants_apikey_secret")
        return [page, *super().get_urls()]

    def secret_page(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The secret, if this very user was just given one; then never again."""
        key = self._key(request, str(pk))
        if not self.has_view_or_change_permission(request, key) and not self.has_add_permission(request):
            raise PermissionDenied
        context = {
            "secret": handover.take(request),
            "base_url": request.build_absolute_uri(settings.API_PREFIX),
        }
        response = self._page(request, key, "tenants/key_secret.html", "Keep this key now", context)
        handover.forget(response, request.path)
        return response

    # ---- rotating and revoking ----

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Nothing can be done to a key that is dead."""
        key = APIKey.objects.filter(pk=object_id).first() if str(object_id).isdigit() else None
        return super().get_actions_detail(request, object_id) if key and key.is_live() else []

    @action(description="Rotate", url_path="rotate", icon="autorenew", permissions=["change"])
    def rotate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        key = self._key(request, object_id)
        form = RotateForm(request.POST if request.method == "POST" else None)
        if request.method == "POST" and form.is_valid():
            try:
                secret = rotate_key(key=key, overlap=timedelta(seconds=int(form.cleaned_data["overlap"])))
            except ValidationError as exc:
                return self._back(request, key, " ".join(exc.messages), messages.ERROR)
            self.log_change(request, key, "Rotated.")
            return handover.give(request, secret, reverse("admin:tenants_apikey_secret", args=[key.pk]))
        return self._page(request, key, "tenants/key_rotate.html", "Rotate this key", {"form": form})

    @action(
        description="Revoke", url_path="revoke", icon="block", permissions=["change"], variant=ActionVariant.DANGER
    )
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        key = self._key(request, object_id)
        if request.method == "POST":
            revoke_key(key=key, by=request.user)  # type: ignore[arg-type]
            self.log_change(request, key, "Revoked.")
            return self._back(request, key, f"{key} is revoked. It is refused from the next request on.")
        return self._page(request, key, "tenants/key_revoke.html", "Revoke this key?", {})

    def _key(self, request: HttpRequest, object_id: str) -> APIKey:
        key: APIKey | None = self.get_object(request, object_id)
        if key is None:
            raise Http404
        return key

    def _back(
        self, request: HttpRequest, key: APIKey, text: str, level: int = messages.SUCCESS
    ) -> HttpResponseRedirect:
        self.message_user(request, text, level)
        return HttpResponseRedirect(reverse("admin:tenants_apikey_change", args=[key.pk]))

    def _page(
        self, request: HttpRequest, key: APIKey, template: str, title: str, context: dict[str, Any]
    ) -> HttpResponse:
        standard = {
            **self.admin_site.each_context(request),
            "opts": self.model._meta,
            "title": title,
            "original": key,
            "key": key,
            "now": timezone.now(),
        }
        return render(request, template, standard | context)
