"""Who may read the books over HTTP: users with `ledger.view_usagerecord`, as the group Finance has it."""

from __future__ import annotations

from typing import NoReturn

from rest_framework.exceptions import AuthenticationFailed, NotAuthenticated, PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

PERMISSION = "ledger.view_usagerecord"
HOW_IN = (
    "Send 'Authorization: Token …' with the token of a finance user; an administrator gives tokens "
    "on the user's page in the admin or with 'manage.py drf_create_token USER'."
)
WHY_NOT = (
    f"This user may not read the books. An administrator can put it into the group Finance, which has {PERMISSION}."
)


class MayReadBooks(BasePermission):
    def has_permission(self, request: Request, view: APIView) -> bool:
        return bool(request.user and request.user.has_perm(PERMISSION))


class BooksView(APIView):
    """Refusals that say what to do."""

    permission_classes = [MayReadBooks]

    def permission_denied(self, request: Request, message: str | None = None, code: str | None = None) -> NoReturn:
        if request.successful_authenticator is None:
            raise NotAuthenticated(HOW_IN)
        raise PermissionDenied(WHY_NOT)

    def handle_exception(self, exc: Exception) -> object:  # type: ignore[override]
        if isinstance(exc, AuthenticationFailed):
            exc = AuthenticationFailed(f"{exc.detail} {HOW_IN}")
        return super().handle_exception(exc)
