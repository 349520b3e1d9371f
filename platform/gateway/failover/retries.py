"""What a provider's failure means: whose fault it is, whether and where it is tried again, after what wait. Pure."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from gateway.errors import GatewayError, InvalidRequest, RateLimited, Unavailable, UpstreamError, UpstreamTimeout

BASE_S = 0.25  # of the first wait; it doubles
LONGEST_S = 8.0
LONGEST_REST_S = 5.0
REST_S = 1.0  # after a 429 that does not say how long

CLIENTS = frozenset({400, 413, 422})  # the client's own fault, even if the provider cannot say what it is
NO_FAULT = frozenset({408, 409, 425})  # these say nothing of the deployment's health


class Fault(NamedTuple):
    """How an attempt failed."""

    outcome: str  # connect | timeout | status_NNN | broken | cut | limited | overloaded, for the books
    blame: str = ""  # for the circuit breaker: the kind of failure; "": the deployment is not to blame
    again: bool = False  # another attempt may be made
    here: bool = False  # at the same deployment too
    rest_s: float | None = None  # the deployment asked to be left alone for so long

    @property
    def well(self) -> bool:
        """It is able to answer, and says no to this client."""
        return self.outcome.startswith("status_") and not (self.blame or self.again)

    @property
    def waits(self) -> bool:
        """Whether the same deployment is worth waiting for. A longer pause is for the client to wait, who is told."""
        return self.here and (self.rest_s or 0.0) <= LONGEST_REST_S


def fault_of(exc: GatewayError) -> Fault:
    """Never again once a byte of the answer has arrived, nor for what is the client's own fault."""
    status = getattr(exc, "upstream_status", None) or 0
    said = f"status_{status}" if status else ""
    if isinstance(exc, InvalidRequest):
        # Without a status nobody was asked: the provider's protocol has no words for it, another's may.
        return Fault(said) if said else Fault("unsupported", again=True)
    if isinstance(exc, RateLimited):
        rest = retry_after(exc)
        return Fault(said or "limited", again=True, here=True, rest_s=REST_S if rest is None else rest)
    if isinstance(exc, Unavailable):
        return Fault(said or "overloaded", "status_5xx", again=True, here=True, rest_s=retry_after(exc))
    if not isinstance(exc, UpstreamError):
        return Fault("internal")
    if exc.ours:
        return Fault("internal", again=True)
    if exc.phase == "body":
        return Fault("timeout" if isinstance(exc, UpstreamTimeout) else "cut", "cut")
    if status >= 400:
        return _of_status(exc, status)
    late = isinstance(exc, UpstreamTimeout)
    if exc.phase == "connect":  # nobody's request is to blame for that, in time or not (`Breaker.failed`)
        return Fault("timeout" if late else "connect", "connect", again=True, here=True)
    kind = "timeout" if late else "broken"
    return Fault(kind, kind, again=True, here=True)


def _of_status(exc: UpstreamError, status: int) -> Fault:
    said = f"status_{status}"
    if status >= 500:
        return Fault(said, "status_5xx", again=True, here=True, rest_s=retry_after(exc))
    if status in CLIENTS:
        return Fault(said)
    if status in NO_FAULT:
        return Fault(said, again=True, here=True, rest_s=retry_after(exc))
    # Our credential, our catalogue: this deployment will say so again, another may not.
    return Fault(said, "status_4xx", again=True, here=False)


def retry_after(exc: GatewayError) -> float | None:
    """Seconds; None if the provider did not say."""
    if (milliseconds := exc.headers.get("retry-after-ms")) is not None:
        return float(milliseconds) / 1000
    seconds = exc.headers.get("retry-after")
    return float(seconds) if seconds is not None else None


def wait_s(attempt: int, fault: Fault, random: Random) -> float:
    """Before the deployment that has just failed is asked again; `attempt` counts from 1. Full jitter: clients that
    failed together must not come back together."""
    jitter = random.uniform(0, min(LONGEST_S, BASE_S * 2 ** (attempt - 1)))
    return jitter if fault.rest_s is None else fault.rest_s + min(jitter, 1.0)
