"""Compare every counter with the ledger; exit 1 if one cent or one token differs."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from gateway.ledger.verification import verify


class Command(BaseCommand):
    help = (
        "Compare the counters of every tenant and key with the ledger and the open holds, the number of records "
        "with the number of settled requests, and look for holds of dead processes. Exit status 1 on any drift."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        found = verify()
        self.stdout.write(
            f"compared {found.counters} counters of {found.tenants} tenants with the ledger: "
            f"{found.records} records, {found.settled} settled requests, {found.open_holds} open holds"
        )
        self.stdout.write(f"compared {found.limits} counters of limits with the ledger")
        for line in found.drift:
            self.stdout.write(line)
        self.stdout.write(f"drift: {len(found.drift)}")
        if found.drift:
            raise CommandError("The counters differ from the ledger; see above.", returncode=1)
