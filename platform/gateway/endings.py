"""How a request ended: for the books, and for who watches (the request log, the live feed, the metrics)."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple

from gateway.calls import Call
from gateway.errors import CLIENT_LEFT, STOPPED
from gateway.ledger.items import Ending, Order
from gateway.limits.expectations import expectations
from gateway.routing import Route
from gateway.telemetry import metrics
from gateway.upstreams.base import Usage


class Abandonment(NamedTuple):
    """Why nobody waits for an answer any more."""

    error_code: str
    outcome: str  # of the attempt
    http_status: int


LEFT = Abandonment("client_disconnected", "client_left", CLIENT_LEFT)
CUT_OFF = Abandonment("server_stopped", "server_stopped", 503)


def abandonment(exc: BaseException) -> Abandonment:
    return CUT_OFF if STOPPED in exc.args else LEFT


# The last requests that ended here, for the admin's live feed; console.feed takes them from the left.
ended_requests: deque[dict[str, Any]] = deque(maxlen=500)


def ending_of(call: Call, route: Route, status: str, usage: Usage, http_status: int, error_code: str) -> Ending:
    """What the desk is told. The attempt that answered has ended with it."""
    call.usage, call.outcome = usage, status
    route.trip.ended("ok", usage)
    if status == "completed":
        output = usage.output_tokens + usage.reasoning_tokens
        expectations.learn(call.caller.key_id, route.order.catalogue_model_id, output // route.choices)
    attempts = route.trip.done
    told = tuple(attempts) if len(attempts) > 1 or status != "completed" else ()
    return Ending(status, usage, http_status, error_code[:64], call.first_byte_ms, told)


def tell(call: Call, order: Order, ending: Ending) -> None:
    """Given to the desk: everybody else may know."""
    whole_ms, usage, model = milliseconds_since(call.began), ending.usage, order.served_model or order.model
    ended_requests.append(
        {
            "request_id": str(call.request_id),
            "at": time.time(),
            "tenant": call.caller.tenant,
            "key": call.caller.key_name,
            "model": model,
            "status": ending.status,
            "tokens": usage.total,
            "ms": whole_ms,
        }
    )
    first_byte_ms = call.first_byte_ms
    metrics.request_ended(
        model=model,
        endpoint=call.endpoint,
        status=ending.status,
        http_status=ending.http_status,
        seconds=whole_ms / 1000,
        stream=call.stream,
        first_byte_s=None if first_byte_ms is None else first_byte_ms / 1000,
        output_s=None if first_byte_ms is None else (whole_ms - first_byte_ms) / 1000,
        usage=usage,
    )


def milliseconds_since(began: float) -> int:
    return round((time.perf_counter() - began) * 1000)
