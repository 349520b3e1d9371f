"""Django's own `migrate`, as the owner of the tables, followed by the application role's grants."""

from typing import Any

from django.conf import settings
from django.core.management.commands import migrate
from django.db import connections

from gateway.ledger.roles import grant_application_role


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        connection = connections[options["database"]]
        application = {
            name: connection.settings_dict[name] for name in ("USER", "PASSWORD", "HOST", "PORT", "OPTIONS")
        }
        owner = {name: settings.MIGRATION_DATABASE[name] for name in application}
        connection.close()
        connection.settings_dict.update(owner)
        try:
            super().handle(*args, **options)
            if not (options["plan"] or options["check_unapplied"]):
                grant_application_role(
                    connection, role=str(application["USER"]), password=str(application["PASSWORD"])
                )
        finally:
            connection.close()
            connection.settings_dict.update(application)
