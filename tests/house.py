"""A house of its own: a database, a catalogue and a key, made by the product's own commands, as an admin would.

    house = House(folder, sockets, "clients")     # a database of a running PostgreSQL
    house.create()
    house.apply(CATALOGUE)
    secret = house.manage("issue_key", "--tenant", "acme", "--name", "laptop").strip()
    with running_server(house.environment) as server: ...
    house.query("SELECT …")                       # as the owner, past the application

It shares nothing with pytest-django's test database, so it may live as long as the session.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from gateway.embedded import layout
from tests.servers import ROOT, server_environment

Row = dict[str, Any]


class House:
    def __init__(self, folder: Path, sockets: Path, name: str, extra: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.sockets = sockets
        self.name = name
        self.environment = {
            "DATABASE_URL": self._url(layout.APPLICATION),
            "MIGRATION_DATABASE_URL": self._url(layout.OWNER),
            "COUNTERFOIL_HOME": str(folder),
            **(extra or {}),
        }

    def create(self) -> None:
        with self._connect("postgres") as owner:
            owner.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(self.name)))
            owner.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.name)))
        self.manage("migrate", "--verbosity", "0")

    def drop(self) -> None:
        with self._connect("postgres") as owner:
            owner.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(self.name)))

    def apply(self, catalogue: str) -> None:
        """The catalogue as YAML, as `manage.py apply` takes it."""
        self.manage("apply", "-", given=catalogue)

    def manage(self, *arguments: str, given: str = "") -> str:
        """`manage.py` with these arguments; what it prints on stdout. Raises AssertionError if it fails."""
        done = self.command("manage.py", *arguments, given=given)
        assert done.returncode == 0, f"manage.py {' '.join(arguments)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def command(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Python with these arguments in this house's environment."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=server_environment(self.environment),
            input=given,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def query(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        with self._connect(self.name) as owner:
            rows: list[Row] = owner.cursor(row_factory=dict_row).execute(statement, parameters).fetchall()
            return rows

    def _connect(self, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(host=str(self.sockets), user=layout.OWNER, dbname=database, autocommit=True)

    def _url(self, user: str) -> str:
        return f"postgres://{user}@/{self.name}?host={quote(str(self.sockets), safe='')}"
