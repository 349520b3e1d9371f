"""From what people and programs write (slugs, days as text) to a Selection; every door comes through here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

from django.db import OperationalError, connection, transaction

from gateway.ledger.models import UsageRecord
from gateway.reports.selection import BadSelection, By, Selection, parse_day
from tenants.models import APIKey, Tenant


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for, as it was written. Empty: not restricted."""

    first: str
    last: str
    by: str = "request"
    tenant: str = ""  # slug
    key: str = ""  # public id
    model: str = ""
    status: str = ""

    def selection(self) -> Selection:
        """Raises BadSelection, also for a tenant or key that does not exist: an empty report would look true."""
        if self.by not in get_args(By):
            raise BadSelection("by", f"{self.by!r} is neither request nor day.")
        if self.status and self.status not in UsageRecord.Status.values:
            raise BadSelection("status", f"{self.status!r} is none of {', '.join(UsageRecord.Status.values)}.")
        return Selection(
            first=parse_day("from", self.first),
            last=parse_day("to", self.last),
            by="day" if self.by == "day" else "request",
            tenant_id=_tenant_id(self.tenant),
            key_id=_key_id(self.key),
            model=self.model,
            status=self.status,
        )

    def described(self) -> str:
        """The filters, for the file itself: 'tenant=acme status=failed'."""
        filters = {"tenant": self.tenant, "key": self.key, "model": self.model, "status": self.status}
        return " ".join(f"{name}={value}" for name, value in filters.items() if value)

    def filename(self) -> str:
        whose = "".join(f"-{part}" for part in (self.tenant, self.key) if part)
        return f"usage{whose}-{self.first}-{self.last}-by-{self.by}.csv"


def _tenant_id(slug: str) -> int | None:
    if not slug:
        return None
    found = Tenant.objects.filter(slug=slug).values_list("pk", flat=True).first()
    if found is None:
        raise BadSelection("tenant", f"There is no tenant {slug!r}.")
    return found


def _key_id(public_id: str) -> int | None:
    if not public_id:
        return None
    found = APIKey.objects.filter(public_id=public_id).values_list("pk", flat=True).first()
    if found is None:
        raise BadSelection("key", f"There is no API key with the id {public_id!r}.")
    return found


@contextmanager
def short_query(milliseconds: int) -> Iterator[None]:
    """Reads within may take this long together, then BadSelection: nobody's page may hold up the desk."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', %s, true)", [str(milliseconds)])
            yield
    except OperationalError as problem:
        if getattr(problem.__cause__, "sqlstate", "") != "57014":  # query_canceled
            raise
        raise BadSelection(
            "from", "That takes too long to look up. Ask for a shorter period, or for one tenant or key."
        ) from None
