"""`Authorization: Bearer sk-cf-…` -> the calling key and its tenant, or one of three refusals.

A key that is wrong, revoked, expired, unknown or mistyped gets the same answer, so that nobody learns which it
is; that the tenant is suspended is said only to who holds the secret. Nothing is decided here on limits.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

from django.conf import settings
from django.http import HttpRequest
from ninja.security.base import AuthBase

from apiv1.keyring import ring
from apiv1.requests import ApiRequest
from apiv1.strangers import address_of, strangers
from gateway.errors import InvalidApiKey, MissingApiKey, TenantSuspended, Unavailable
from tenants import keys
from tenants.facts import Caller
from tenants.models import Tenant

NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY)."
)


class Bearer(AuthBase):
    """Ninja's hook: puts the caller, and the way to re-read it, on the request. Runs before the body is read."""

    openapi_type = "http"
    openapi_scheme = "bearer"

    async def __call__(self, request: HttpRequest) -> Caller:
        assert isinstance(request, HttpRequest)
        try:
            caller, digest, shown = await _identify(request.headers.get("authorization"))
        except (MissingApiKey, InvalidApiKey) as refused:
            flood = strangers.refusal(address_of(request))
            if flood is None:
                raise
            raise flood from refused
        known: ApiRequest = request  # type: ignore[assignment]
        known.auth = caller
        known.reload = partial(_reload, digest, shown)
        known.counterfoil.tenant = caller.tenant
        known.counterfoil.key = caller.public_id
        return caller


async def authenticate(authorization: str | None) -> Caller:
    """Who sends this header; raises MissingApiKey, InvalidApiKey, TenantSuspended or Unavailable."""
    caller, _, _ = await _identify(authorization)
    return caller


async def reload(caller: Caller) -> Caller:
    """This key as the database knows it now, for whom no secret is at hand; raises as `authenticate`."""
    return await _reload(None, keys.PREFIX + caller.public_id, caller)


async def _identify(authorization: str | None) -> tuple[Caller, bytes, str]:
    text = _bearer(authorization)
    digest = keys.digest(text, settings.KEY_PEPPER.encode())
    public_id = keys.public_id_of(text)
    caller = await (ring.find_imported(digest) if public_id is None else ring.find(public_id))
    try:
        return _checked(caller, digest, text), digest, text
    except (InvalidApiKey, TenantSuspended):
        if caller is None or ring.is_wrong(digest):
            raise
    return await _checked_anew(caller, digest, text), digest, text


async def _checked_anew(caller: Caller, digest: bytes, text: str) -> Caller:
    """A refusal counts only on fresh facts: a secret may be new, a suspension lifted, an expiry moved.

    Admission would tell that facts are stale, but a refused request never gets there.
    """
    fresh: Caller | None = caller
    try:
        fresh = await ring.reread(caller.public_id)
    except Unavailable:
        if not caller.has_digest(digest):
            raise  # as for any key that is not known
    if fresh is None or not fresh.has_digest(digest):
        ring.remember_wrong(digest)
    return _checked(fresh, digest, text)


async def _reload(digest: bytes | None, text: str, caller: Caller) -> Caller:
    return _checked(await ring.reread(caller.public_id), digest, text)


def _checked(caller: Caller | None, digest: bytes | None, text: str) -> Caller:
    """The caller if it may come in now. `digest` None: only the key itself is looked at."""
    now = datetime.now(UTC)
    if (
        caller is None
        or not (digest is None or caller.has_digest(digest, now))
        or not caller.key_active
        or (caller.key_expires_at is not None and caller.key_expires_at <= now)
    ):
        raise refusal(text)
    if caller.tenant_status != Tenant.Status.ACTIVE:
        raise TenantSuspended(f"The tenant `{caller.tenant}` is not active. Please contact your administrator.")
    return caller


def _bearer(authorization: str | None) -> str:
    scheme, _, text = (authorization or "").strip().partition(" ")
    text = text.strip()
    if scheme.lower() != "bearer" or not text:
        raise MissingApiKey(NO_KEY)
    # Django decodes headers as latin-1; a key is what its bytes say in UTF-8.
    return text if text.isascii() else text.encode("latin-1", "replace").decode("utf-8", "surrogateescape")


def refusal(text: str) -> InvalidApiKey:
    """The one answer to every key that does not open. It shows the client's own text masked."""
    shown = keys.masked(text).encode("ascii", "replace").decode()
    return InvalidApiKey(
        f"Incorrect API key provided: {shown}. Ask the administrator of this service for a valid API key."
    )
