"""What a failure means, without anybody failing."""

from __future__ import annotations

from random import Random

import pytest

from gateway.errors import GatewayError, InvalidRequest, RateLimited, Unavailable, UpstreamError, UpstreamTimeout
from gateway.failover.retries import LONGEST_S, Fault, fault_of, wait_s


def upstream(
    status: int | None = None, phase: str = "head", kind: type[UpstreamError] = UpstreamError
) -> UpstreamError:
    error = kind("failed")
    error.upstream_status, error.phase = status, phase  # type: ignore[assignment]
    return error


def with_status(error: GatewayError, status: int) -> GatewayError:
    error.upstream_status = status
    return error


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (upstream(phase="connect"), Fault("connect", "connect", again=True, here=True)),
        (upstream(phase="connect", kind=UpstreamTimeout), Fault("timeout", "connect", again=True, here=True)),
        (upstream(phase="sent", kind=UpstreamTimeout), Fault("timeout", "timeout", again=True, here=True)),
        (upstream(200, "head", UpstreamTimeout), Fault("timeout", "timeout", again=True, here=True)),
        (upstream(phase="sent"), Fault("broken", "broken", again=True, here=True)),
        (upstream(500), Fault("status_500", "status_5xx", again=True, here=True)),
        (upstream(502), Fault("status_502", "status_5xx", again=True, here=True)),
        (upstream(408, kind=UpstreamTimeout), Fault("status_408", again=True, here=True)),
        (upstream(409), Fault("status_409", again=True, here=True)),
        # Ours: this deployment's credential or name. Another may know better, this one will not.
        (upstream(401), Fault("status_401", "status_4xx", again=True)),
        (upstream(404), Fault("status_404", "status_4xx", again=True)),
        # The client's own, and what has begun: never again.
        (with_status(InvalidRequest("too long"), 400), Fault("status_400")),
        (upstream(422), Fault("status_422")),
        (upstream(200, "body"), Fault("cut", "cut")),
        (upstream(200, "body", UpstreamTimeout), Fault("timeout", "cut")),
        (with_status(Unavailable("busy", retry_after=3), 503), Fault("status_503", "status_5xx", True, True, 3.0)),
    ],
)
def test_each_class_of_error_has_its_rule(error: GatewayError, fault: Fault) -> None:
    assert fault_of(error) == fault


@pytest.mark.parametrize(
    ("headers", "rest_s"),
    [({}, 1.0), ({"retry-after": "7"}, 7.0), ({"retry-after": "1", "retry-after-ms": "250"}, 0.25)],
)
def test_a_limit_of_the_providers_is_no_fault_and_says_how_long(headers: dict[str, str], rest_s: float) -> None:
    error = with_status(RateLimited("slow down", headers=headers), 429)
    assert fault_of(error) == Fault("status_429", again=True, here=True, rest_s=rest_s)


def test_waits_are_drawn_from_the_whole_of_a_doubling_span() -> None:
    random, fault = Random(3), Fault("broken", "broken", again=True, here=True)
    for attempt in range(1, 10):
        span = min(LONGEST_S, 0.25 * 2 ** (attempt - 1))
        waits = [wait_s(attempt, fault, random) for _ in range(500)]
        assert 0 <= min(waits) < span * 0.1
        assert span * 0.9 < max(waits) <= span


def test_a_wait_is_never_shorter_than_what_the_provider_asked_for() -> None:
    fault = Fault("status_429", again=True, here=True, rest_s=7.0)
    assert all(7.0 <= wait_s(attempt, fault, Random(attempt)) <= 8.0 for attempt in range(1, 20))
