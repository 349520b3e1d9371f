"""`manage.py issue_key`: the secret alone on stdout, so that a script can keep it; all else on stderr."""

from __future__ import annotations

from argparse import ArgumentParser
from datetime import datetime, time
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.utils.dateparse import parse_date, parse_datetime

from tenants.models import Tenant
from tenants.services import issue_key


class Command(BaseCommand):
    help = "Issue an API key. Prints the secret, once, on stdout; it cannot be shown again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="SLUG", help="the tenant that the key belongs to")
        parser.add_argument("--name", required=True, help="what the key is for, such as its application")
        parser.add_argument(
            "--expires",
            metavar="WHEN",
            help="YYYY-MM-DD (its first moment in the tenant's time zone) or YYYY-MM-DDTHH:MM[+HH:MM]",
        )
        parser.add_argument(
            "--models", nargs="+", metavar="PATTERN", help="models that it may call, such as 'acme-*'; default: all"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        tenant = Tenant.objects.filter(slug=options["tenant"]).first()
        if tenant is None:
            known = ", ".join(Tenant.objects.values_list("slug", flat=True)[:10]) or "none yet"
            raise CommandError(f"There is no tenant {options['tenant']!r}. Known: {known}.")
        try:
            key, secret = issue_key(
                tenant=tenant,
                name=options["name"],
                expires_at=_moment(options["expires"], tenant),
                allowed_models=options["models"],
            )
        except ValidationError as exc:
            raise CommandError(" ".join(exc.messages)) from exc
        self.stderr.write(f"Issued {key.public_id} ({key.name}) for {tenant.slug}. The secret is not shown again.")
        self.stdout.write(secret)


def _moment(text: str | None, tenant: Tenant) -> datetime | None:
    """A day or a moment; without an offset it is meant in the tenant's time zone."""
    if text is None:
        return None
    try:
        day = parse_date(text)
        moment = datetime.combine(day, time.min) if day else parse_datetime(text)
    except ValueError:
        moment = None
    if moment is None:
        raise CommandError(f"--expires {text!r} is neither YYYY-MM-DD nor YYYY-MM-DDTHH:MM.")
    return moment if moment.tzinfo else moment.replace(tzinfo=tenant.zone)
