"""`manage.py import_api_keys`: the keys of API_KEYS, hashed, into the tenant `default`; each once."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from tenants.services import DEFAULT_TENANT, import_api_keys


class Command(BaseCommand):
    help = "Import the keys of API_KEYS into the tenant 'default'. A key that is no longer listed stays as it is."

    def handle(self, *args: Any, **options: Any) -> None:
        listed = len(dict.fromkeys(settings.API_KEYS))
        created = import_api_keys(settings.API_KEYS)
        known = listed - len(created)
        self.stderr.write(f"API_KEYS: {len(created)} imported into the tenant {DEFAULT_TENANT!r}, {known} known.")
