"""Where things live under COUNTERFOIL_HOME. Pure paths and settings: importing this starts nothing.

secrets.env   Django's key, the key pepper, the encryption key (mode 0600)
postgres/     PostgreSQL's data          valkey/   Valkey's data
run/          their sockets (0700)       locks/    who uses them, and the keeper's word that they are ready
logs/         what engines, worker, model and keeper say
"""

from __future__ import annotations

import hashlib
import os
import secrets as random
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

from gateway.embedded.trouble import Trouble

DATABASE = "counterfoil"
OWNER = "counterfoil_owner"  # owns every table; only `migrate` (and tests) use it
APPLICATION = "counterfoil"  # may only INSERT and SELECT on the ledger
SUPERUSER = "postgres"
# PostgreSQL's socket is "<folder>/.s.PGSQL.5432", and the kernel takes 107 bytes at most.
LONGEST_SOCKET_FOLDER = 107 - len("/.s.PGSQL.5432")


def secrets(home: Path) -> dict[str, str]:
    """The generated secrets, made on first use, readable by the owner only. Raises Trouble."""
    path = home / "secrets.env"
    try:
        if not path.exists():
            _make_secrets(path)
        return dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
    except OSError as error:
        raise Trouble(
            f"{error.filename}: {error.strerror}. COUNTERFOIL_HOME ({home}) must be a folder of your own: "
            "run as the user that it belongs to, or set it to another."
        ) from error


def _make_secrets(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lines = [
        f"SECRET_KEY={random.token_urlsafe(48)}",
        f"KEY_PEPPER={random.token_urlsafe(48)}",
        f"ENCRYPTION_KEYS={urlsafe_b64encode(random.token_bytes(32)).decode()}",
    ]
    draft = path.with_suffix(f".{random.token_hex(4)}")
    draft.touch(mode=0o600)
    draft.write_text("\n".join(lines) + "\n")
    try:
        os.link(draft, path)  # atomic, and the first of two starters wins
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def sockets(home: Path) -> Path:
    """The folder of the engines' sockets: under the home, or in /tmp where that path would be too long."""
    folder = home / "run"
    if len(os.fsencode(folder)) <= LONGEST_SOCKET_FOLDER:
        return folder
    return Path("/tmp") / f"counterfoil-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"


def databases(home: Path) -> dict[str, dict[str, Any]]:
    """Django's DATABASES: the application's role, on an engine that starts PostgreSQL when first asked."""
    return {"default": _database(home, APPLICATION)}


def migration_database(home: Path) -> dict[str, Any]:
    return _database(home, OWNER)


def valkey_url(home: Path) -> str:
    return f"unix://{valkey_socket(home)}"


def valkey_socket(home: Path) -> Path:
    return sockets(home) / "valkey.sock"


def _database(home: Path, user: str) -> dict[str, Any]:
    # The folder of the socket is open to its owner only: that is the whole authentication.
    return {
        "ENGINE": "gateway.embedded.backend",
        "NAME": DATABASE,
        "USER": user,
        "PASSWORD": "",
        "HOST": str(sockets(home)),
        "PORT": "",
        "OPTIONS": {"connect_timeout": "5"},
    }
