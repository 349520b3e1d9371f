"""The embedded PostgreSQL: made once, started, given its two roles, stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psycopg
from psycopg import sql

from gateway.embedded import binaries, children, layout
from gateway.embedded.trouble import Trouble

START_S = 90.0  # crash recovery after a kill included
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "wal_compression": "on",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    "logging_collector": "off",
}


class Postgres:
    """One cluster under the home. Not thread-safe: its owner is the keeper, or a test."""

    def __init__(self, home: Path, identity: children.Identity) -> None:
        self.home = home
        self.identity = identity
        self.data = home.resolve() / "postgres"
        self.sockets = layout.sockets(home)
        self.log = home / "logs" / "postgres.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make the cluster if there is none, start it, wait until it answers. Raises Trouble."""
        version = self.data / "PG_VERSION"
        major = int(version.read_text()) if version.exists() else None
        programs = binaries.postgres(self.identity, major=major)
        if major is None:
            self._initialise(programs)
        self._clear_traces()
        self.sockets.mkdir(exist_ok=True)
        options = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            # SIGQUIT: if the keeper is killed, stop at once; the next start recovers.
            self.process = self.identity.popen(
                [programs.folder / "postgres", "-D", self.data, "-k", self.sockets, *options],
                env=children.environment(),
                output=log,
                death_signal=signal.SIGQUIT,
            )
        self._wait()
        self._grant()

    def stop(self) -> None:
        """Fast shutdown: sessions are ended, everything is written, the next start needs no recovery."""
        if self.process:
            children.stop(self.process, by=[(signal.SIGINT, 15.0), (signal.SIGQUIT, 6.0)])
            self.process = None

    def _initialise(self, programs: binaries.Postgres) -> None:
        # initdb fills a folder beside, so that one that was cut short is never taken for a cluster.
        draft = self.home / "postgres.new"
        shutil.rmtree(draft, ignore_errors=True)
        self.identity.own(draft)
        locale = ["--locale=C.UTF-8"]
        if programs.major >= 17:
            locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        command = [str(programs.folder / "initdb"), "-D", str(draft), "-U", layout.SUPERUSER]
        command += ["-A", "trust", "-E", "UTF8", *locale]
        code, output = self.identity.run(command, env=children.environment())
        if code:
            raise Trouble(
                f"PostgreSQL could not make its data folder {self.data}:\n{output.strip()}\n{self._advice()}"
            )
        if self.data.exists():
            self.data.rmdir()  # only ever empty here: PG_VERSION is the first file that initdb writes
        draft.rename(self.data)

    def _advice(self) -> str:
        if self.identity.kind == "nobody":
            return (
                "It runs as 'nobody', since it refuses to run as root and user namespaces are forbidden here. "
                f"Make {self.home} reachable for that user, run as a normal user, or set DATABASE_URL."
            )
        return "Is there space on the disk? Otherwise set COUNTERFOIL_HOME to another folder, or DATABASE_URL."

    def _clear_traces(self) -> None:
        """Wait for what a killed keeper or postmaster left running, then forget its lock files.

        PostgreSQL itself refuses to start when the process id in them is alive, even if that is a zombie, or
        after a reboot a wholly different process. We hold the keeper's lock, so nobody else starts one here;
        what still works on the data is found by its working folder, which is the data's.
        """
        if not Path("/proc/self").exists():
            return  # no way to tell: PostgreSQL decides by itself
        deadline = time.monotonic() + 15
        while left := _processes_in(self.data):
            if time.monotonic() > deadline:
                raise Trouble(f"PostgreSQL processes {left} still use {self.data}. End them: kill -QUIT {left[0]}")
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGQUIT)
            time.sleep(0.1)
        for trace in [self.data / "postmaster.pid", *self.sockets.glob(".s.PGSQL.*")]:
            trace.unlink(missing_ok=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            assert self.process is not None
            if self.process.poll() is not None:
                raise Trouble(f"PostgreSQL did not start. {self._advice()} {self.log} says:\n{tail(self.log)}")
            try:
                self.connect().close()
                return
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise Trouble(
                        f"PostgreSQL did not answer within {START_S:.0f} s: {error}. See {self.log}."
                    ) from error
            time.sleep(0.03)

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """As superuser, in autocommit."""
        return psycopg.connect(host=str(self.sockets), user=layout.SUPERUSER, dbname=database, autocommit=True)

    def _grant(self) -> None:
        """The two roles and the database; nothing to do after the first start."""
        owner, application = sql.Identifier(layout.OWNER), sql.Identifier(layout.APPLICATION)
        with self.connect() as connection:
            found = {row[0] for row in connection.execute("SELECT rolname FROM pg_roles")}
            if layout.OWNER not in found:
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEDB").format(owner))
                # Tests flush tables whose triggers refuse it.
                grant = "GRANT SET ON PARAMETER session_replication_role TO {}"
                connection.execute(sql.SQL(grant).format(owner))
            if layout.APPLICATION not in found:
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(application))
            name = sql.Identifier(layout.DATABASE)
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [layout.DATABASE]).fetchone():
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, owner))


def _processes_in(folder: Path) -> list[int]:
    """Processes whose working folder this is; a zombie has none any more."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd") == str(folder):
                found.append(int(entry.name))
        except OSError:
            continue  # gone meanwhile, or somebody else's
    return found


def tail(path: Path, lines: int = 12, *, start: int = 0) -> str:
    """The last lines of what follows the first `start` bytes."""
    if not path.exists():
        return ""
    return "\n".join(path.read_bytes()[start:].decode(errors="replace").splitlines()[-lines:])
