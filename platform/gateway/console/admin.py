"""People: Django's users and groups with Unfold's look, and the tokens with which they use the finance API."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.auth.admin import GroupAdmin as StockGroupAdmin
from django.contrib.auth.admin import UserAdmin as StockUserAdmin
from django.contrib.auth.models import Group, User
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import URLPattern, path, reverse
from rest_framework.authtoken.models import Token, TokenProxy
from unfold.admin import ModelAdmin
from unfold.decorators import action, display
from unfold.enums import ActionVariant
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from tenants.admin import handover

admin.site.unregister(User)
admin.site.unregister(Group)
# Its pages, messages and log entries name a token by its whole secret. Tokens are given on the user's page.
admin.site.unregister(TokenProxy)


@admin.register(Group)
class GroupAdmin(StockGroupAdmin, ModelAdmin):
    filter_horizontal = ()  # two lists side by side are wider than the page


@admin.register(User)
class UserAdmin(StockUserAdmin, ModelAdmin):  # type: ignore[type-arg]
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    autocomplete_fields = ["groups"]
    filter_horizontal = ()
    readonly_fields = ["api_token", "last_login", "date_joined"]
    fieldsets = [
        (None, {"fields": ["username", "password"]}),
        ("Person", {"fields": [("first_name", "last_name"), "email"]}),
        ("Permissions", {"fields": ["is_active", "is_staff", "is_superuser", "groups", "user_permissions"]}),
        ("Access", {"fields": ["api_token", ("last_login", "date_joined")]}),
    ]
    actions_detail = ["issue_token", "revoke_token"]

    @display(description="API token")
    def api_token(self, user: User) -> str:
        token = Token.objects.filter(user_id=user.pk).first()
        return f"One ends in …{token.key[-4:]}, given {token.created:%Y-%m-%d}." if token else "None."

    def has_token_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.has_perms(["auth.change_user", "authtoken.add_token"]))

    @action(description="Give a token", url_path="token", icon="vpn_key", permissions=["token"])
    def issue_token(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """A new token for the finance API; a former one stops."""
        user = self._target(request, object_id)
        if request.method != "POST":
            return self._page(request, user, "Give an API token", {"asks": True})
        Token.objects.filter(user=user).delete()
        token = Token.objects.create(user=user)
        self.log_change(request, user, "Given an API token.")
        return handover.give(request, token.key, reverse("admin:auth_user_token_secret", args=[user.pk]))

    @action(
        description="Revoke token",
        url_path="token/revoke",
        icon="block",
        permissions=["token"],
        variant=ActionVariant.DANGER,
    )
    def revoke_token(self, request: HttpRequest, object_id: str) -> HttpResponse:
        user = self._target(request, object_id)
        if request.method != "POST":
            return self._page(request, user, "Revoke the API token", {"asks": True, "revokes": True})
        count, _ = Token.objects.filter(user=user).delete()
        if count:
            self.log_change(request, user, "Revoked the API token.")
        self.message_user(request, "The token is revoked." if count else "There was none.", messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:auth_user_change", args=[user.pk]))

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.token_page)
        return [path("<int:pk>/token/secret/", view, name="auth_user_token_secret"), *super().get_urls()]

    def token_page(self, request: HttpRequest, pk: int) -> HttpResponse:
        user = self._target(request, str(pk))
        context = {"secret": handover.take(request), "url": request.build_absolute_uri("/api/usage/")}
        response = self._page(request, user, "Keep this token now", context)
        handover.forget(response, request.path)
        return response

    def _target(self, request: HttpRequest, object_id: str) -> User:
        user: User | None = self.get_object(request, object_id)
        if user is None:
            raise Http404
        if not self.has_token_permission(request) or (user.is_superuser and not request.user.is_superuser):
            raise PermissionDenied
        return user

    def _page(self, request: HttpRequest, user: User, title: str, context: dict[str, Any]) -> HttpResponse:
        standard = {"opts": User._meta, "original": user, "title": title, "person": user}
        return render(request, "console/token.html", self.admin_site.each_context(request) | standard | context)
