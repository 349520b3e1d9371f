"""The request id in whatever is written on behalf of a request."""

from __future__ import annotations

from tests.telemetry.watched import Watched, until
from tests.upstream_scripts import error


def test_the_request_id_is_everywhere(watched: Watched) -> None:
    before = len(watched.upstream.served)
    watched.upstream.queue(*[error(500)] * 3)
    response = watched.ask()
    request_id = response.headers["x-request-id"]
    assert response.status_code >= 500
    until(lambda: any(line.get("event") == "request" for line in watched.lines(request_id)))
    faults = [line for line in watched.lines(request_id) if line.get("logger") == "gateway.upstreams"]
    assert faults, "the provider's fault is logged with the request's id"
    (served, *_) = watched.upstream.served[before:]
    assert served.headers["x-client-request-id"] == request_id
    rows = watched.house.query(
        "SELECT status FROM ledger_usagerecord WHERE request_id = %s", [request_id.removeprefix("req_")]
    )
    assert [row["status"] for row in rows] == ["failed"]
    assert watched.collector.of(request_id)
