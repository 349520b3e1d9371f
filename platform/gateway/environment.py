"""Reads settings from the environment and `.env`, in the guide's names. Bad values become system checks.

The environment wins over `.env`. A value that cannot be read is remembered in `problems` and its default
used, so that `manage.py check` can say all that is wrong at once (gateway.checks, E001) instead of a traceback.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

problems: list[tuple[str, str]] = []  # (name, what is wrong)
_from_file: set[str] = set()

TRUE = {"1", "true", "yes", "on"}
FALSE = {"0", "false", "no", "off"}


def load_dotenv(path: Path) -> None:
    """Take KEY=VALUE lines that the environment does not set itself."""
    if not path.is_file():
        return
    for number, raw in enumerate(path.read_text().splitlines(), 1):
        line = raw.strip().removeprefix("export ")
        if not line or line.startswith("#"):
            continue
        name, separator, value = line.partition("=")
        if not separator or not name.strip():
            problems.append((f"{path.name}:{number}", "expected NAME=value"))
            continue
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        else:
            value = re.split(r"(?:^|\s)#", value, maxsplit=1)[0].rstrip()  # as Docker Compose reads the same file
        if name.strip() not in os.environ:
            os.environ[name.strip()] = value
            _from_file.add(name.strip())


def given() -> dict[str, str]:
    """The environment without what `.env` says: for a process that has to read that file for itself."""
    return {name: value for name, value in os.environ.items() if name not in _from_file}


def text(name: str, default: str = "") -> str:
    return os.environ.get(name, "").strip() or default


def flag(name: str, default: bool) -> bool:
    raw = text(name)
    if not raw:
        return default  # `HTTPS=` in a file means "not said", never "off"
    if raw.lower() not in TRUE | FALSE:
        problems.append((name, f"{raw!r} is neither true nor false"))
        return default
    return raw.lower() in TRUE


def integer(name: str, default: int, *, low: int = 0, high: int = 2**31 - 1) -> int:
    raw = text(name)
    if not raw:
        return default
    try:
        value = int(raw)
    except ValueError:
        problems.append((name, f"{raw!r} is not a whole number"))
        return default
    if not low <= value <= high:
        problems.append((name, f"{value} is not between {low} and {high}"))
        return default
    return value


def count(name: str, default: int) -> int:
    """At least 1, or `auto`, which is 0: as many as there are CPUs."""
    return 0 if text(name).lower() == "auto" else integer(name, default, low=1, high=1024)


def strings(name: str) -> list[str]:
    """A comma list; blanks are dropped."""
    return [part.strip() for part in text(name).split(",") if part.strip()]


# libpq's own defaults wait for a host that went away without a word for two minutes, or a quarter of an hour.
LINK_OPTIONS = {
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}


def database(url: str, name: str) -> dict[str, object]:
    """Django's settings for postgres://user:password@host:port/name; a host in the query is a socket folder."""
    parts = urlsplit(url)
    if parts.scheme not in ("postgres", "postgresql") or not parts.path.strip("/"):
        problems.append((name, "expected postgres://user:password@host:port/database"))
        return {"ENGINE": "django.db.backends.postgresql", "NAME": "missing"}
    options = dict(LINK_OPTIONS)
    options |= dict(pair.partition("=")[::2] for pair in parts.query.split("&") if pair)
    host = unquote(options.pop("host", "")) or parts.hostname or ""
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": host,
        "PORT": str(parts.port or ""),
        "OPTIONS": {key: unquote(value) for key, value in options.items()},
    }
