"""The steps of a start that need no state: the address, the database, whether it all answers."""

from __future__ import annotations

import errno
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from gateway.embedded.progress import say
from gateway.embedded.trouble import Trouble

READY_S = 120.0
SAY_EVERY_S = 5.0


def listen(host: str, port: int) -> socket.socket:
    """The socket that the server inherits. Raises Trouble if the address is taken or not ours."""
    try:
        return socket.create_server((host, port), family=_family(host), backlog=1024)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise Trouble(
                f"Cannot listen on {host}:{port} ({error.strerror}). HOST must be an address of this machine "
                "(127.0.0.1: this machine only; 0.0.0.0: all of them), PORT one that this user may open."
            ) from error
        raise Trouble(
            f"Cannot listen on {host}:{port} ({error.strerror}). Choose another port: make run PORT={port + 1}; "
            f"a second copy needs its own folder too: make run PORT={port + 1} COUNTERFOIL_HOME=var-2"
        ) from error


def settings_must_be_readable() -> None:
    """Before anything is made or started. Raises Trouble with every value that cannot be read."""
    from django.conf import settings

    from gateway import environment

    assert settings.BASE_DIR  # loads the settings, which read the environment
    if environment.problems:
        wrong = "; ".join(f"{name}: {problem}" for name, problem in environment.problems)
        raise Trouble(f"{wrong}. Correct it in the environment or in .env.")


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def url_of(host: str, port: int) -> str:
    """As a client on this machine writes it."""
    reachable = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return (
        f"http://[{reachable}]:{port}"
        if reachable.count(":") > 1 and "[" not in reachable
        else f"http://{reachable}:{port}"
    )


def migrate() -> None:
    """Bring the database's tables up to date; quick if they are."""
    from django.core.management import call_command
    from django.db import ProgrammingError, connection
    from django.db.migrations.executor import MigrationExecutor

    try:
        executor = MigrationExecutor(connection)
        missing = len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    except ProgrammingError:
        missing = 1  # cut short between the tables and the application's rights to them
    if missing:
        say(f"migrating the database ({missing} steps)")
        call_command("migrate", verbosity=0, interactive=False)


def wait_for(name: str, answers: Callable[[], str], check: Callable[[], None]) -> None:
    """Until `answers` returns no reason to wait longer. `check` may raise Trouble meanwhile."""
    deadline = time.monotonic() + READY_S
    tell_at = time.monotonic() + SAY_EVERY_S
    while reason := answers():
        check()
        if time.monotonic() > deadline:
            raise Trouble(
                f"The {name} is not ready after {READY_S:.0f} s: {reason}. See the logs in COUNTERFOIL_HOME."
            )
        if time.monotonic() > tell_at:
            say(f"still waiting for the {name}: {reason}")
            tell_at = time.monotonic() + SAY_EVERY_S
        time.sleep(0.1)


def not_ready(url: str) -> str:
    """Why /readyz says no; empty when it says yes."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2):
            return ""
    except urllib.error.HTTPError as error:
        return error.read().decode(errors="replace")[:300] or str(error)
    except OSError:
        return "no answer yet"


def complete_chat(url: str, key: str, model: str) -> None:
    """One real answer, the way a client asks for it. Raises Trouble."""
    request = urllib.request.Request(
        f"{url}/chat/completions",
        data=json.dumps(first_request(model)).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            json.load(answer)["choices"][0]["message"]
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")[:300]
        raise Trouble(f"The first chat completion failed: {error.code} {text}. See logs/server.log.") from error
    except (OSError, ValueError, LookupError) as error:
        raise Trouble(f"The first chat completion failed: {error}. See logs/server.log.") from error


def first_request(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 32}
