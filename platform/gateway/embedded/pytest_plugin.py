"""pytest's side of the embedded engines; named in pyproject.toml, since a conftest comes after the settings.

Tests run on a home of their own (`var/test`), and reach nothing but this machine.
"""

from __future__ import annotations

import os
import re
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
os.environ.setdefault("COUNTERFOIL_HOME", str(ROOT / "var" / "test"))
# Nor on what a developer has set for `make run`: neither here nor in the servers that tests start.
os.environ["COUNTERFOIL_ENV_FILE"] = os.devnull
if not os.environ.get("DATABASE_URL"):
    for name in re.findall(r"^#([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE):
        if name != "COUNTERFOIL_HOME":
            os.environ.pop(name, None)


class NetworkClosed(RuntimeError):
    """A test reached for another machine. Not an OSError: code under test must not swallow it."""


def _address(host: object) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host.decode() if isinstance(host, bytes) else str(host).partition("%")[0])
    except ValueError:
        return None


def _is_here(host: object) -> bool:
    address = _address(host)
    if address is None:
        return host in (None, "", b"", "localhost", b"localhost")
    return address.is_loopback or address.is_unspecified


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        if isinstance(address, tuple) and not _is_here(address[0]):
            raise NetworkClosed(f"Tests reach only this machine, not {address[0]}:{address[1]}.")
    elif event == "socket.getaddrinfo" and not (_is_here(arguments[0]) or _address(arguments[0])):
        raise NetworkClosed(f"Tests look up no names: {arguments[0]}.")


sys.addaudithook(_guard)
