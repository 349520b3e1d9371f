"""What the request path knows of a caller: immutable facts, read in one query per batch of keys.

They carry the versions of the key's and the tenant's rows. Admission compares those inside the database,
so a fact that is out of date is never decided on (design.md 2, "Snapshots and freshness").
"""

from __future__ import annotations

import hmac
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cached_property
from zoneinfo import ZoneInfo

from tenants.models import APIKey, KeySecret


@dataclass(frozen=True)
class Caller:
    """A key and its tenant, as of two versions."""

    key_id: int
    public_id: str
    key_name: str
    key_version: int
    key_active: bool
    key_expires_at: datetime | None
    key_models: tuple[str, ...]
    secrets: tuple[tuple[bytes, datetime | None], ...]  # (digest, expires_at)
    tenant_id: int
    tenant: str  # slug
    tenant_version: int
    tenant_status: str
    tenant_models: tuple[str, ...]
    timezone: str
    currency: str

    @cached_property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    @cached_property
    def _verdicts(self) -> dict[str, bool]:
        return {}

    def may_call(self, model: str) -> bool:
        """True if the public id fits a pattern of the tenant and one of the key. `*` is any run of characters."""
        known = self._verdicts.get(model)
        if known is None:
            if len(self._verdicts) > 1000:
                self._verdicts.clear()
            known = self._verdicts[model] = any(_fits(model, p) for p in self.tenant_models) and any(
                _fits(model, p) for p in self.key_models
            )
        return known

    def has_digest(self, digest: bytes, now: datetime | None = None) -> bool:
        """True if one of the key's secrets (in force at `now`) has this digest. Compares all, in constant time."""
        found = False
        for known, expires_at in self.secrets:
            in_force = now is None or expires_at is None or expires_at > now
            found |= hmac.compare_digest(known, digest) and in_force
        return found


def _fits(model: str, pattern: str) -> bool:
    # Only `*` is special: `[` and `?` are escaped, since a model id may not mean them as fnmatch does.
    return fnmatchcase(model, pattern.replace("[", "[[]").replace("?", "[?]"))


def load_callers(public_ids: Collection[str]) -> dict[str, Caller]:
    """Callers by public id; unknown ids are absent. Two queries, whatever the number of ids."""
    keys = APIKey.objects.filter(public_id__in=public_ids).select_related("tenant").prefetch_related("secrets")
    return {key.public_id: _caller(key) for key in keys}


def load_imported() -> dict[bytes, Caller]:
    """Callers by digest for the secrets of API_KEYS, which have no public id in them."""
    secrets = KeySecret.objects.filter(imported=True).select_related("key__tenant").prefetch_related("key__secrets")
    return {bytes(secret.digest): _caller(secret.key) for secret in secrets}


def _caller(key: APIKey) -> Caller:
    return Caller(
        key_id=key.pk,
        public_id=key.public_id,
        key_name=key.name,
        key_version=key.version,
        key_active=key.status == APIKey.Status.ACTIVE,
        key_expires_at=key.expires_at,
        key_models=tuple(key.allowed_models),
        secrets=tuple((bytes(s.digest), s.expires_at) for s in key.secrets.all()),
        tenant_id=key.tenant_id,
        tenant=key.tenant.slug,
        tenant_version=key.tenant.version,
        tenant_status=key.tenant.status,
        tenant_models=tuple(key.tenant.allowed_models),
        timezone=key.tenant.timezone,
        currency=key.tenant.currency,
    )
