"""What is done to keys, each verb in one transaction. Secrets leave here once, as return values.

Bad input raises Django's ValidationError, so that forms and commands can say which field it was. The verbs
that end or replace a secret lock the key's row first: two admins who rotate at once get two secrets in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from tenants import keys as text_of_keys
from tenants.models import APIKey, KeySecret, Tenant

DEFAULT_TENANT = "default"


def issue_key(
    *,
    tenant: Tenant,
    name: str,
    expires_at: datetime | None = None,
    allowed_models: list[str] | None = None,
    created_by: User | None = None,
) -> tuple[APIKey, str]:
    """A new key of a live tenant, and its secret, which nothing can show again."""
    check_issuable(tenant=tenant, expires_at=expires_at)
    key = APIKey(
        public_id=text_of_keys.generate_public_id(),
        tenant=tenant,
        name=name.strip(),
        expires_at=expires_at,
        allowed_models=["*"] if allowed_models is None else allowed_models,
        created_by=created_by,
    )
    key.full_clean()
    with transaction.atomic():
        key.save()
        return key, _add_secret(key)


def check_issuable(*, tenant: Tenant, expires_at: datetime | None) -> None:
    """Forms ask this before `issue_key` does, to show the answer at its field."""
    if tenant.status != Tenant.Status.ACTIVE:
        raise ValidationError({"tenant": f"The tenant {tenant.slug} is {tenant.status}: it gets no new keys."})
    if expires_at is not None and expires_at <= timezone.now():
        raise ValidationError({"expires_at": "This is in the past: the key would never work."})


def rotate_key(*, key: APIKey, overlap: timedelta) -> str:
    """A new secret for a live key; the old ones work for `overlap` more, or until their own earlier end."""
    if overlap < timedelta(0):
        raise ValidationError({"overlap": "The overlap cannot be negative."})
    with transaction.atomic():
        locked = APIKey.objects.select_for_update().get(pk=key.pk)
        now = timezone.now()
        if not locked.is_live(now):
            raise ValidationError(f"{locked} is revoked or has expired. Issue a new key instead.")
        end = now + overlap
        locked.secrets.filter(Q(expires_at=None) | Q(expires_at__gt=end)).update(expires_at=end)
        secret = _add_secret(locked)
        _note(locked, f"rotated; former secrets end {end:%Y-%m-%d %H:%M} UTC")
        locked.save(update_fields=["status"])  # changes nothing but writes the line of history
        return secret


def revoke_key(*, key: APIKey, by: User | None) -> APIKey:
    """The key is refused from the next request on, in every process. Revoking twice is one revocation."""
    with transaction.atomic():
        locked = APIKey.objects.select_for_update().get(pk=key.pk)
        if locked.status != APIKey.Status.REVOKED:
            locked.status = APIKey.Status.REVOKED
            locked.revoked_at = timezone.now()
            _note(locked, "revoked", by)
            locked.save(update_fields=["status", "revoked_at"])
        return locked


def import_api_keys(texts: Sequence[str]) -> list[APIKey]:
    """Take the keys of API_KEYS into the tenant `default`, each once and hashed; returns those that were new.

    A key that is no longer in the list stays as it is: a variable that somebody forgot to set must not cut
    clients off. It is revoked where every key is, in the admin.
    """
    with transaction.atomic():
        Tenant.objects.get_or_create(
            slug=DEFAULT_TENANT, defaults={"name": "Default tenant", "allowed_models": ["*"]}
        )
        # Servers that start together import one after the other.
        tenant = Tenant.objects.select_for_update().get(slug=DEFAULT_TENANT)
        return [key for text in dict.fromkeys(filter(None, texts)) if (key := _import(tenant, text))]


def _import(tenant: Tenant, text: str) -> APIKey | None:
    digest = _digest(text)
    if KeySecret.objects.filter(digest=digest).exists():
        return None
    # A key of our own shape keeps its public id, since that is what it is looked up by.
    public_id = text_of_keys.public_id_of(text)
    if public_id is None or APIKey.objects.filter(public_id=public_id).exists():
        public_id = text_of_keys.generate_public_id()
    key = APIKey.objects.create(public_id=public_id, tenant=tenant, name=f"API_KEYS …{_last4(text)}")
    KeySecret.objects.create(key=key, digest=digest, last4=_last4(text), imported=True)
    return key


def _note(key: Any, reason: str, by: User | None = None) -> None:
    """What the history's next line of this key says; without `by` it names the request's user, if any."""
    key._change_reason = reason
    if by is not None:
        key._history_user = by


def _add_secret(key: APIKey) -> str:
    secret = text_of_keys.generate_secret(key.public_id)
    KeySecret.objects.create(key=key, digest=_digest(secret), last4=secret[-4:])
    return secret


def _digest(text: str) -> bytes:
    return text_of_keys.digest(text, settings.KEY_PEPPER.encode())


def _last4(text: str) -> str:
    # Four characters of a short text would be most of the secret.
    return text[-4:] if len(text) >= 12 else ""
