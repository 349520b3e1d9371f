"""A text column that is encrypted at rest, with keys that rotate (building-blocks: MultiFernet of our own)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import models


@lru_cache(maxsize=4)
def _cipher(keys: tuple[str, ...]) -> MultiFernet:
    if not keys:
        raise ImproperlyConfigured("ENCRYPTION_KEYS is empty: credentials can be neither stored nor read.")
    return MultiFernet([Fernet(key) for key in keys])


def cipher() -> MultiFernet:
    """The first of ENCRYPTION_KEYS encrypts; all of them decrypt. `manage.py rotate_credentials` re-encrypts."""
    return _cipher(tuple(settings.ENCRYPTION_KEYS))


class EncryptedTextField(models.TextField[str, str]):
    """Plain text in Python, a Fernet token in the database. Never searchable."""

    def get_prep_value(self, value: Any) -> Any:
        if not value:
            return ""
        return cipher().encrypt(str(value).encode()).decode()

    def from_db_value(self, value: str | None, expression: object, connection: object) -> str:
        if not value:
            return ""
        try:
            return cipher().decrypt(value.encode()).decode()
        except InvalidToken as exc:
            raise ImproperlyConfigured(
                "A stored credential cannot be decrypted: none of ENCRYPTION_KEYS is the one that it was "
                "stored with. Put the old key back at the end of the list."
            ) from exc
