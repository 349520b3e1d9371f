"""Django's own PostgreSQL backend, behind a running embedded PostgreSQL.

Connecting is the one thing that manage.py, Celery, Daphne, pytest and the desk all do, so it is the place
where the engine is started or adopted; whatever never connects starts nothing.
"""

from __future__ import annotations

from typing import Any

import psycopg
from django.conf import settings
from django.db.backends.postgresql import base

from gateway.embedded import engines
from gateway.embedded.trouble import Trouble


class DatabaseWrapper(base.DatabaseWrapper):
    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        try:
            engines.ensure(settings.COUNTERFOIL_HOME)
            try:
                return super().get_new_connection(conn_params)
            except psycopg.OperationalError:
                engines.revive(settings.COUNTERFOIL_HOME)
                return super().get_new_connection(conn_params)
        except Trouble as trouble:
            raise psycopg.OperationalError(str(trouble)) from trouble
