"""The two database roles: the owner migrates, the application may only add to the ledger.

`grant_application_role` runs after every migration, so that new tables are covered. Where both URLs name the
same role there is nothing to grant; a deploy check warns (gateway.checks).
"""

from __future__ import annotations

from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import sql

APPEND_ONLY = ("ledger_usagerecord", "ledger_attempt", "ledger_adjustment")


def grant_application_role(connection: BaseDatabaseWrapper, *, role: str, password: str) -> bool:
    """Make the role if it is missing and give it what it needs. False if it is the owner itself."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        if not role or cursor.fetchone() == (role,):
            return False
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])
        if cursor.fetchone() is None:
            statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                sql.Identifier(role), sql.Literal(password)
            )
            _execute(cursor, statement)
        name = sql.Identifier(role)
        for text in (
            "GRANT USAGE ON SCHEMA public TO {}",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {}",
            "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {}",
            "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {}",
        ):
            _execute(cursor, sql.SQL(text).format(name))
        cursor.execute(
            "SELECT c.relname FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid"
            " LEFT JOIN pg_class p ON p.oid = i.inhparent"
            " WHERE c.relkind IN ('r', 'p') AND (c.relname = ANY(%s) OR p.relname = ANY(%s))",
            [list(APPEND_ONLY), list(APPEND_ONLY)],
        )
        for (table,) in cursor.fetchall():
            _execute(
                cursor,
                sql.SQL("REVOKE UPDATE, DELETE, TRUNCATE ON {} FROM {}").format(sql.Identifier(table), name),
            )
    return True


def _execute(cursor: Any, statement: sql.Composable) -> None:
    cursor.execute(statement.as_string())
