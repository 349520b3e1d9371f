"""The metrics of a real server."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
import requests

from tests.servers import running_server
from tests.telemetry.samples import parsed, value
from tests.telemetry.watched import SECRET_WORDS, TOKEN, Watched, free_port, until
from tests.upstream_scripts import Stream, hang


def test_both_pages_say_the_same(watched: Watched) -> None:
    assert watched.ask("acme-echo").status_code == 200
    own = requests.get(f"http://127.0.0.1:{watched.metrics_port}/metrics").text
    answered = {"route": "chat.completions", "code": "200"}
    for page in (watched.page(), own):
        assert (value(page, "counterfoil_http_responses_total", **answered) or 0) >= 1
        assert set(parsed(own)) == set(parsed(page))


def test_the_page_needs_the_token(watched: Watched) -> None:
    url = f"{watched.server}/metrics"
    for headers in ({}, {"authorization": f"Bearer {watched.secret}"}):
        assert requests.get(url, headers=headers).status_code == 401
    assert requests.head(url, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert TOKEN not in watched.server.log.read_text()


def test_refusals_are_counted_by_their_code(watched: Watched) -> None:
    def seen() -> list[float]:
        refused = {"endpoint": "chat.completions", "model": "other", "status": "refused"}
        return [
            watched.sample("counterfoil_refusals_total", code="invalid_api_key"),
            watched.sample("counterfoil_refusals_total", code="model_not_found"),
            watched.sample("counterfoil_requests_total", **refused, code="401"),
            watched.sample("counterfoil_requests_total", **refused, code="404"),
            watched.sample("counterfoil_requests_total", **refused, code="400"),
        ]

    before = seen()
    assert watched.ask(secret="sk-nobodys-key-at-all-but-long").status_code == 401
    assert watched.ask("acme-nothing").status_code == 404
    assert watched.ask(temperature="hot").status_code == 400
    assert [after - was for was, after in zip(before, seen(), strict=True)] == [1, 1, 1, 1, 1]
    codes = [line.get("error_code") for line in watched.server.request_lines() if line["status"] in (401, 404)]
    assert "invalid_api_key" in codes
    assert "model_not_found" in codes


def test_no_label_is_a_tenant_or_a_key(watched: Watched) -> None:
    watched.ask("acme-echo", user="somebody@example.com", headers={"x-client-request-id": "their-own-id"})
    page = watched.page()
    assert not {"tenant", "key", "user"} & {
        name for family in parsed(page).values() for sample in family.samples for name in sample.labels
    }
    for word in ('"acme"', "laptop", "somebody", "their-own-id", watched.secret, SECRET_WORDS):
        assert word not in page


def test_the_desk_the_connections_and_what_is_charged_are_seen(watched: Watched) -> None:
    before = [watched.sample(name) for name in DESK], watched.sample("counterfoil_charge_total", currency="USD")
    assert watched.ask("acme-echo").status_code == 200
    until(lambda: all(watched.sample(name) > was for name, was in zip(DESK, before[0], strict=True)))
    assert watched.sample("counterfoil_charge_total", currency="USD") > before[1]
    assert watched.sample("counterfoil_in_flight") == 1  # the scrape
    assert watched.sample("counterfoil_connections") >= 1


DESK = ("counterfoil_desk_batch_size_sum", "counterfoil_desk_batch_seconds_count")


def test_clients_that_leave_and_streams_that_break_are_counted(watched: Watched) -> None:
    left, broken = (
        watched.sample("counterfoil_clients_left_total"),
        watched.sample("counterfoil_streams_broken_total"),
    )
    watched.upstream.queue(Stream(cut_after=2))
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        watched.ask(stream=True)
    assert watched.sample("counterfoil_streams_broken_total") == broken + 1
    watched.upstream.queue(hang)
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.post(
            f"{watched.server}/v1/chat/completions",
            json={"model": "acme-chat", "messages": [{"role": "user", "content": "x"}]},
            headers={"authorization": f"Bearer {watched.secret}"},
            timeout=0.5,
        )
    until(lambda: watched.sample("counterfoil_clients_left_total") == left + 1)


def test_processes_that_share_a_folder_show_their_sum(watched: Watched, tmp_path: Path) -> None:
    port = free_port()
    shared = {"METRICS_DIR": str(tmp_path / "shared"), "METRICS_TOKEN": TOKEN, "METRICS_PORT": str(port)}
    environment = watched.house.environment | shared
    answered = {"name": "counterfoil_http_responses_total", "route": "models", "code": "200"}

    def models(server: str) -> None:
        assert requests.get(f"{server}/v1/models", headers={"authorization": f"Bearer {watched.secret}"}).ok

    def page(url: str) -> str:
        return requests.get(f"{url}/metrics", headers={"authorization": f"Bearer {TOKEN}"}).text

    with running_server(environment) as first, running_server(environment) as second:
        for server in (first, second, second):
            models(server)
        for url in (first, second, f"http://127.0.0.1:{port}"):
            assert value(page(url), **answered) == 3
            assert value(page(url), "counterfoil_processes") == 2
        first.stop(signal.SIGKILL)  # it had the port: its neighbour takes over
        models(second)
        assert value(page(second), **answered) == 4
        assert value(page(second), "counterfoil_processes") == 1
        until(lambda: _listens(port))
        assert value(page(f"http://127.0.0.1:{port}"), **answered) == 4


def _listens(port: int) -> bool:
    with socket.socket() as plug:
        return plug.connect_ex(("127.0.0.1", port)) == 0
