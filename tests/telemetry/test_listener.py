"""/metrics on a port of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parsed_openmetrics

from gateway.telemetry import exposition, listener, metrics
from gateway.telemetry.listener import Listener
from gateway.telemetry.slots import Slots
from tests.telemetry.samples import parsed, value

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


@pytest.fixture
def listening(fresh: Slots) -> Iterator[Listener]:
    found = listener.start("127.0.0.1", 0)
    yield found
    found.stop()


@pytest.fixture
def url(listening: Listener) -> str:
    return f"http://127.0.0.1:{listening.port}"


def test_it_answers_in_prometheus_text(url: str) -> None:
    metrics.client_left()
    response = requests.get(url + "/metrics", headers={"accept-encoding": "identity"})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert value(response.text, "counterfoil_clients_left_total") == 1
    assert parsed(response.text)["counterfoil_request_seconds"].type == "histogram"


def test_it_answers_in_openmetrics_if_asked(url: str) -> None:
    metrics.request_refused(endpoint="chat.completions", http_status=401, code="invalid_api_key")
    response = requests.get(url + "/metrics", headers={"accept": OPENMETRICS})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.headers["content-encoding"] == "gzip"
    families = {family.name: family for family in parsed_openmetrics(response.text)}
    assert families["counterfoil_refusals"].samples[0].value == 1
    assert response.text.endswith("# EOF\n")


def test_head_is_the_same_without_the_body(url: str) -> None:
    response = requests.head(url + "/metrics")
    assert response.status_code == 200
    assert int(response.headers["content-length"]) > 1000
    assert response.content == b""


def test_nothing_else_is_there(url: str) -> None:
    assert requests.get(url + "/").status_code == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        response = requests.request(method, url + "/metrics", data=b"x=1")
        assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")


def test_a_scraper_that_hangs_up_harms_nobody(listening: Listener, url: str) -> None:
    for said in (b"", b"GET /met", b"nonsense\r\n\r\n", b"GET /metrics HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", listening.port)) as plug:
            plug.sendall(said)
    assert requests.get(url + "/metrics").status_code == 200


def test_a_fault_is_said(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("the folder is gone")

    monkeypatch.setattr(exposition, "gather", fail)
    assert requests.get(url + "/metrics").status_code == 500


def test_who_was_accepted_is_answered_though_it_stops(fresh: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    found, held, page = listener.start("127.0.0.1", 0), threading.Event(), exposition.page

    def slowly(*arguments: Any) -> exposition.Page:
        held.wait(20)
        return page(*arguments)

    monkeypatch.setattr(exposition, "page", slowly)
    with socket.create_connection(("127.0.0.1", found.port), timeout=20) as plug:
        plug.sendall(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
        stopping = threading.Thread(target=found.stop)
        stopping.start()
        held.set()
        stopping.join()
        answer = b"".join(iter(lambda: plug.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"counterfoil_processes 1.0" in answer
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", found.port))


def test_neighbours_may_listen_beside_each_other(fresh: Slots) -> None:
    first = listener.start("127.0.0.1", 0, beside_others=True)
    second = listener.start("127.0.0.1", first.port, beside_others=True)
    first.stop()
    assert requests.get(f"http://127.0.0.1:{second.port}/metrics").status_code == 200
    second.stop()


def test_a_port_that_is_taken_is_an_error(listening: Listener) -> None:
    with pytest.raises(OSError, match="in use"):
        listener.start("127.0.0.1", listening.port)
