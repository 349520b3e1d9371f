"""The embedded default as Django sees it: a real PostgreSQL, with the owner's and the application's role."""

from __future__ import annotations

import psycopg
import pytest
from django.conf import settings
from django.db import connection

from gateway.embedded import layout


@pytest.mark.django_db
def test_it_is_a_real_postgresql_that_flushes_to_disk() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('server_version_num')::int, current_setting('fsync')")
        version, fsync = cursor.fetchone()
    assert version >= 150000
    assert fsync == "on"


@pytest.mark.django_db
def test_the_application_role_owns_nothing_and_cannot_create() -> None:
    parameters = {"host": str(layout.sockets(settings.COUNTERFOIL_HOME)), "user": layout.APPLICATION}
    with psycopg.connect(dbname=layout.DATABASE, **parameters) as application:
        owned = application.execute("SELECT count(*) FROM pg_tables WHERE tableowner = current_user").fetchone()
        assert owned == (0,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            application.execute("CREATE TABLE public.mine (id int)")


@pytest.mark.django_db
def test_tests_run_as_the_owner() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        assert cursor.fetchone() == (settings.MIGRATION_DATABASE["USER"],)
