"""The metrics of a real server."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import requests

from tests.servers import free_port, running_server
from tests.telemetry.samples import parsed, value
from tests.telemetry.watched import SECRET_WORDS, TOKEN, Watched, until
from tests.upstream_scripts import Stream, error, hang


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
        watched.ask("acme-cut", stream=True)
    assert watched.sample("counterfoil_streams_broken_total") == broken + 1
    watched.upstream.queue(hang)
    before = len(watched.upstream.served)
    for seconds in (0.5, 2, 8, 32):  # so short a patience may end before the provider has heard of it
        with pytest.raises(requests.exceptions.ReadTimeout):
            requests.post(
                f"{watched.server}/v1/chat/completions",
                json={"model": "acme-silent", "messages": [{"role": "user", "content": "x"}]},
                headers={"authorization": f"Bearer {watched.secret}"},
                timeout=seconds,
            )
        if len(watched.upstream.served) > before:
            break
    until(lambda: watched.sample("counterfoil_clients_left_total") > left)


def test_two_requests_are_counted_with_their_times_and_tokens(watched: Watched) -> None:
    before = seen(watched, "acme-chat")
    usage = watched.ask().json()["usage"]
    watched.upstream.queue(Stream(pieces=("a", "b", "c", "d"), interval=0.01))
    streamed = watched.ask(stream=True, stream_options={"include_usage": True})
    assert b'"usage"' in streamed.content
    after = seen(watched, "acme-chat")
    gained = {name: after[name] - before[name] for name in after}
    assert gained["input"] == 2 * usage["prompt_tokens"]
    assert gained["output"] == usage["completion_tokens"] + 4
    counted = {name: gained[name] for name in ("requests", "whole", "first", "between", "attempts")}
    assert counted == {"requests": 2, "whole": 2, "first": 1, "between": 1, "attempts": 2}


def seen(watched: Watched, model: str) -> dict[str, float]:
    page, labels = watched.page(), {"endpoint": "chat.completions", "model": model}
    (deployment,) = watched.house.query(
        "SELECT id::text, provider_id::text FROM catalogue_deployment WHERE upstream_model = %s", [f"{model}-v1"]
    )
    place = {"deployment": deployment["id"], "provider": deployment["provider_id"]}
    found = {
        "requests": value(page, "counterfoil_requests_total", **labels, status="completed", code="200"),
        "whole": value(page, "counterfoil_request_seconds_count", **labels),
        "first": value(page, "counterfoil_first_token_seconds_count", **labels),
        "between": value(page, "counterfoil_token_seconds_count", **labels),
        "input": value(page, "counterfoil_tokens_total", **{"model": model, "class": "input"}),
        "output": value(page, "counterfoil_tokens_total", **{"model": model, "class": "output"}),
        "attempts": value(page, "counterfoil_attempts_total", **place, outcome="ok"),
    }
    return {name: number or 0.0 for name, number in found.items()}


def test_an_answer_that_is_given_again_is_no_second_request(watched: Watched) -> None:
    before, replays = seen(watched, "acme-chat"), watched.sample("counterfoil_replays_total")
    asked = [watched.ask(headers={"idempotency-key": "once-and-for-all"}) for _ in range(2)]
    assert asked[0].content == asked[1].content
    after = seen(watched, "acme-chat")
    assert after["requests"] == before["requests"] + 1
    assert after["input"] - before["input"] == asked[0].json()["usage"]["prompt_tokens"]
    assert watched.sample("counterfoil_replays_total") == replays + 1
    assert watched.collector.of(asked[1].headers["x-request-id"])[0].attributes["counterfoil.replayed"] is True


def test_a_provider_that_fails_shows_in_attempts_and_in_its_breaker(watched: Watched) -> None:
    (deployment,) = watched.house.query(
        "SELECT id::text, provider_id::text FROM catalogue_deployment WHERE upstream_model = 'acme-failing-v1'"
    )
    place = {"deployment": deployment["id"]}
    watched.upstream.script("acme-failing-v1", error(500))
    until(lambda: watched.ask("acme-failing").status_code == 503)  # its breaker is open
    attempts = {**place, "provider": deployment["provider_id"], "outcome": "status_500"}
    assert watched.sample("counterfoil_attempts_total", **attempts) >= 1
    assert watched.sample("counterfoil_breaker_state", **place) == 2


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
        first.stop(signal.SIGKILL)
        models(second)
        assert value(page(second), **answered) == 4
        assert value(page(second), "counterfoil_processes") == 1
        assert value(page(f"http://127.0.0.1:{port}"), **answered) == 4


def test_workers_of_one_port_show_their_sum_whichever_answers(watched: Watched) -> None:
    port = free_port()
    environment = watched.house.environment | {"METRICS_TOKEN": TOKEN, "METRICS_PORT": str(port)}
    with running_server(environment, command=("manage.py", "serve", "--workers", "2")) as server:
        there = Watched(server, watched.secret, watched.upstream, watched.collector, watched.house, port)
        until(lambda: there.sample("counterfoil_processes") == 2)
        for _ in range(6):
            assert there.ask("acme-echo").status_code == 200
        own = f"http://127.0.0.1:{port}/metrics"
        done = {"endpoint": "chat.completions", "model": "acme-echo", "status": "completed", "code": "200"}
        pages = [there.page() for _ in range(8)] + [requests.get(own).text]
        assert {value(page, "counterfoil_requests_total", **done) for page in pages} == {6}
        server.process.send_signal(signal.SIGHUP)  # new workers; what the old ones counted stays
        until(lambda: "reloaded" in {line["event"] for line in server.lines()})
        assert value(there.page(), "counterfoil_requests_total", **done) == 6
        assert value(requests.get(own).text, "counterfoil_requests_total", **done) == 6
