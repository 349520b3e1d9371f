"""What the lean handler does itself: CORS, ids, errors, the log; and what the stock path does alike."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import until
from tests.server.raw import CHAT, Connection, Response, ask
from tests.servers import RunningServer

ORIGIN = "https://app.example"
BOTH = pytest.mark.parametrize("path", [CHAT, "/v1/stock"])


def assert_stamped(response: Response) -> None:
    assert len(response.headers["x-request-id"]) == len("req_") + 32
    assert response.headers["openai-processing-ms"].isdigit()
    assert response.headers["openai-version"] == "2020-10-01"


@BOTH
def test_it_stamps_every_answer(stub: RunningServer, path: str) -> None:
    ids = set()
    for wanted in ({}, {"do": "stream"}, {"do": "raise"}, {"do": "refuse"}):
        response = ask(stub, "POST", path, wanted)
        assert_stamped(response)
        ids.add(response.headers["x-request-id"])
    assert len(ids) == 4


@BOTH
def test_it_stamps_refusals_of_the_server_too(stub: RunningServer, path: str) -> None:
    response = ask(stub, "POST", path, b"x" * 100_001)
    assert response.status == 413
    assert_stamped(response)


@BOTH
def test_it_allows_the_origins_of_the_settings(stub: RunningServer, path: str) -> None:
    for wanted in ({}, {"do": "stream"}, {"do": "raise"}):
        headers = ask(stub, "POST", path, wanted, Origin=ORIGIN).headers
        assert headers["access-control-allow-origin"] == ORIGIN
        exposed = headers["access-control-expose-headers"]
        for name in ("x-request-id", "x-ratelimit-remaining-tokens", "retry-after", "openai-processing-ms"):
            assert name in exposed
    other = ask(stub, "POST", path, {}, Origin="https://evil.example").headers
    assert "access-control-allow-origin" not in other
    assert "origin" in other["vary"]


@pytest.mark.parametrize("path", [CHAT, "/v1/models"])
def test_it_answers_preflights(stub: RunningServer, path: str) -> None:
    wanted = "authorization,content-type,x-stainless-os"
    response = ask(
        stub,
        "OPTIONS",
        path,
        Origin=ORIGIN,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers=wanted,
    )
    assert response.status == 204
    assert response.headers["access-control-allow-headers"] == wanted
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["access-control-allow-origin"] == ORIGIN


def test_it_refuses_preflights_of_others(stub: RunningServer) -> None:
    response = ask(stub, "OPTIONS", CHAT, Origin="https://evil.example", Access_Control_Request_Method="POST")
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_it_keeps_the_headers_of_an_error(stub: RunningServer) -> None:
    response = ask(stub, "POST", CHAT, {"do": "refuse"})
    assert response.status == 429
    assert response.headers["retry-after"] == "7"
    assert response.error == {
        "message": "Slow down.",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing/here", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/page?status=403", 403),
        ("GET", "/v1/page?status=400", 400),
        ("GET", "/v1/page?status=500", 500),
        ("GET", "/v1/page?status=503", 503),
    ],
)
def test_it_never_answers_with_a_page_under_the_api(stub: RunningServer, method: str, path: str, status: int) -> None:
    response = ask(stub, method, path)
    assert response.status == status
    assert response.error["message"]
    assert_stamped(response)


def test_it_refuses_a_foreign_host_in_the_envelope(stub: RunningServer) -> None:
    with Connection(stub) as connection:
        connection.send(b"GET /v1/state HTTP/1.1\r\nHost: no_such host\r\n\r\n")
        response = connection.read()
    assert response.status in (200, 400)
    if response.status == 400:
        assert response.error


def test_it_shows_pages_to_people_elsewhere(stub: RunningServer) -> None:
    response = ask(stub, "GET", "/nothing", Accept="text/html")
    assert response.status == 404
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["x-request-id"].startswith("req_")


@BOTH
def test_it_logs_one_line_for_each_request_and_no_secret(stub: RunningServer, path: str) -> None:
    response = ask(
        stub,
        "POST",
        path + "?key=hunter2",
        {"do": "raise", "messages": "hunter2"},
        Authorization="Bearer sk-cf-hunter2",
        Cookie="sessionid=hunter2",
        X_Client_Request_Id="mine-1",
    )
    lines = list[dict[str, Any]]()

    def written() -> bool:  # after the answer
        lines[:] = [line for line in stub.request_lines() if line["request_id"] == response.headers["x-request-id"]]
        return bool(lines)

    until(written)
    assert len(lines) == 1
    (line,) = lines
    assert line["method"] == "POST"
    assert line["path"] == path
    assert line["status"] == 500
    assert line["ms"] >= 0
    assert line["client_request_id"] == "mine-1"
    assert "sk-cf-hunter2" not in stub.log.read_text()
    assert "sessionid" not in stub.log.read_text()


def test_it_logs_only_json(stub: RunningServer) -> None:
    ask(stub, "GET", "/v1/nothing")
    whole, _, _ = stub.log.read_bytes().rpartition(b"\n")  # one look: it grows
    assert [line for line in whole.split(b"\n") if not line.startswith(b'{"')] == []
