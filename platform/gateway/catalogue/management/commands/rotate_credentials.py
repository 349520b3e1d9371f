"""`manage.py rotate_credentials`: what is stored encrypted, encrypted anew with the first of ENCRYPTION_KEYS."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from gateway.catalogue.services import reencrypt_contents, reencrypt_credentials


class Command(BaseCommand):
    help = (
        "Encrypt stored credentials and kept answers anew with the first of ENCRYPTION_KEYS. Put the new key first, "
        "keep the old one behind it, run this, then drop the old one."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            count, contents = reencrypt_credentials(), reencrypt_contents()
        except ImproperlyConfigured as exc:
            raise CommandError(str(exc)) from exc
        self.stderr.write(f"{count} credential{'s' * (count != 1)} encrypted with the first of ENCRYPTION_KEYS.")
        if contents:
            self.stderr.write(f"{contents} kept answer{'s' * (contents != 1)} too.")
