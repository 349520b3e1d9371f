"""Carry a secret from the request that made it to the page that shows it, once, and keep it nowhere.

The form's POST ends in a redirect (a reload must not issue a second key), so the secret travels with the
browser: encrypted under a key derived from SECRET_KEY, in a cookie for that one page, for one minute. The page
deletes the cookie as it shows the secret. Nothing is stored on the server, in a URL, a session or a log.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect

COOKIE = "counterfoil_secret"
SECONDS = 60


class Secret(str):
    """Its text in a page; not in a dump of the page's context, which Django's template engine logs at DEBUG."""

    def __repr__(self) -> str:
        return "'…'"


def give(request: HttpRequest, secret: str, page: str) -> HttpResponseRedirect:
    """Redirect to the page at this path, with the secret for the user who made it."""
    response = HttpResponseRedirect(page)
    response.set_cookie(
        COOKIE,
        _cipher(request, page).encrypt(secret.encode()).decode(),
        max_age=SECONDS,
        path=page,
        secure=request.is_secure(),
        httponly=True,
        samesite="Strict",
    )
    return response


def take(request: HttpRequest) -> Secret | None:
    """The secret that was given to this user for this path less than a minute ago; None otherwise."""
    token = request.COOKIES.get(COOKIE)
    if not token:
        return None
    try:
        return Secret(_cipher(request, request.path).decrypt(token.encode(), ttl=SECONDS).decode())
    except (InvalidToken, UnicodeError):
        return None


def forget(response: HttpResponse, page: str) -> None:
    response.delete_cookie(COOKIE, path=page, samesite="Strict")


def _cipher(request: HttpRequest, page: str) -> Fernet:
    # Bound to user and page: a token that leaks is of no use to another account or on another page.
    purpose = f"counterfoil secret hand-over|{request.user.pk}|{page}"
    key = hmac.digest(settings.SECRET_KEY.encode(), purpose.encode(), hashlib.sha256)
    return Fernet(base64.urlsafe_b64encode(key))
