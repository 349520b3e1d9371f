"""The request id in whatever is written on behalf of a request."""

from __future__ import annotations

from tests.telemetry.watched import Watched, until
from tests.upstream_scripts import error


def test_the_request_id_is_everywhere(watched: Watched) -> None:
    watched.upstream.script("acme-lost-v1", error(503))
    response = watched.ask("acme-lost")
    request_id = response.headers["x-request-id"]
    assert response.status_code >= 500
    until(lambda: any(line.get("event") == "request" for line in watched.lines(request_id)))
    faults = [line for line in watched.lines(request_id) if line.get("logger") == "gateway.upstreams"]
    assert faults, "the provider's fault is logged with the request's id"
    (served, *_) = watched.upstream.served
    assert served.headers["x-client-request-id"] == request_id
    until(lambda: recorded(watched, request_id) == ["failed"])
    spans = watched.collector.of(request_id, 2)  # of a provider's call, too
    assert {span.attributes["counterfoil.request_id"] for span in spans} == {request_id}


def recorded(watched: Watched, request_id: str) -> list[str]:
    plain = [request_id.removeprefix("req_")]
    rows = watched.house.query("SELECT status FROM ledger_usagerecord WHERE request_id = %s", plain)
    return [row["status"] for row in rows]
