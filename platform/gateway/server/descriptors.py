"""How many files and connections this process may have open."""

from __future__ import annotations

import contextlib
import resource

RESERVE = 128  # the database, logs, modules that are read late, Valkey
FEWEST = 16
MOST = 65_536


def raise_limit() -> None:
    """As many as the system lets us have: the soft limit is 1024 in many places, for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some kernels refuse what they call unlimited
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def most_connections(wanted: int = 0) -> int:
    """Of clients, by the limit of this process; `wanted`, if it is not 0 and there is room for it.

    Half of what there is, since a request that runs has a connection to its upstream, too.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted or MOST
    room = max(soft - RESERVE, FEWEST)
    return min(wanted, room) if wanted else min(max(room // 2, FEWEST), MOST)
