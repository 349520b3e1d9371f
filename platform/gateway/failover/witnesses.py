"""Whose requests a deployment has failed and answered lately. Pure.

A tenant may send what makes a provider answer 500 every time (what crashes its server, what it does not want to say).
If others are answered meanwhile, the deployment is well, and nobody else may lose it for that.
"""

from __future__ import annotations

LATELY_S = 30.0
KNOWN = 64  # tenants of each kind; whoever was not heard of for longest is forgotten


class Witnesses:
    __slots__ = ("_failed", "_served")

    def __init__(self) -> None:
        self._served: dict[int, float] = {}  # tenant -> when
        self._failed: dict[int, float] = {}

    def served(self, tenant: int, now: float) -> None:
        _note(self._served, tenant, now)

    def failed(self, tenant: int, now: float) -> None:
        _note(self._failed, tenant, now)

    def doubtful(self, now: float) -> bool:
        """All that failed lately was one tenant's, and somebody else was answered."""
        failing = [tenant for tenant, at in self._failed.items() if now - at < LATELY_S]
        if len(failing) != 1 or not failing[0]:
            return False
        return any(now - at < LATELY_S for tenant, at in self._served.items() if tenant != failing[0])


def _note(times: dict[int, float], tenant: int, now: float) -> None:
    times[tenant] = now
    if len(times) > KNOWN:
        del times[min(times, key=times.__getitem__)]
