"""The spans of a real server, as a collector gets them."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
import requests

from tests.faults.wrongs import Wrong
from tests.servers import free_port, running_server
from tests.telemetry.collector import Collector, Span
from tests.telemetry.watched import SECRET_WORDS, Watched, until
from tests.upstream_scripts import Answer, Stream, error

CACHED = {
    "prompt_tokens": 30,
    "completion_tokens": 3,
    "total_tokens": 33,
    "prompt_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 6},
}


def test_a_request_is_a_span_with_the_conventions_attributes(watched: Watched) -> None:
    watched.upstream.queue(Answer())
    response = watched.ask(max_tokens=50, temperature=0.5, n=1, seed=7)
    assert response.status_code == 200
    said, request_id = response.json(), response.headers["x-request-id"]
    span = watched.collector.of(request_id)[0]
    assert (span.name, span.kind, span.failed) == ("chat acme-chat", "server", False)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "acme-chat",
        "gen_ai.response.model": "acme-chat",
        "gen_ai.response.id": said["id"],
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.usage.input_tokens": said["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": said["usage"]["completion_tokens"],
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "counterfoil.request_id": request_id,
        "counterfoil.outcome": "completed",
    }
    assert span.attributes | expected == span.attributes
    assert not {"gen_ai.request.stream", "gen_ai.response.time_to_first_chunk"} & set(span.attributes)  # no stream
    assert span.resource["service.name"] == "counterfoil"


def test_the_call_of_the_provider_is_a_span_under_it_which_the_provider_is_told(watched: Watched) -> None:
    watched.upstream.queue(Wrong(3, usage=CACHED))
    response = watched.ask(stream=True, temperature=0.5)
    server, client = watched.collector.of(response.headers["x-request-id"], 2)
    assert (client.name, client.kind, client.parent_id) == ("chat acme-chat-v1", "client", server.span_id)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "acme-chat-v1",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.input_tokens": 30,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 20,
        "gen_ai.usage.cache_write.input_tokens": 6,
        "server.address": "127.0.0.1",
        "server.port": urlsplit(watched.upstream.url).port,
        "counterfoil.provider": "scripted",
        "counterfoil.request_id": response.headers["x-request-id"],
        "http.response.status_code": 200,
    }
    assert client.attributes | expected == client.attributes
    for span in (server, client):
        assert span.attributes["gen_ai.response.time_to_first_chunk"] > 0
        assert span.attributes["gen_ai.usage.cache_write.input_tokens"] == 6
    assert server.attributes["gen_ai.provider.name"] == "openai"
    (served,) = watched.upstream.served
    version, *ids, flags = served.headers["traceparent"].split("-")
    assert (version, ids) == ("00", [client.trace_id, client.span_id])
    assert int(flags, 16) & 1  # sampled


def test_a_clients_trace_is_continued(watched: Watched) -> None:
    trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    response = watched.ask("acme-echo", headers={"traceparent": f"00-{trace_id}-{parent}-01"})
    span = watched.collector.of(response.headers["x-request-id"])[0]
    assert (span.trace_id, span.parent_id) == (trace_id, parent)


@pytest.mark.parametrize("traceparent", ["nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "é"])
def test_a_traceparent_that_is_none_begins_a_trace(watched: Watched, traceparent: str) -> None:
    response = watched.ask("acme-echo", headers={"traceparent": traceparent.encode()})
    assert response.status_code == 200
    assert watched.collector.of(response.headers["x-request-id"])[0].parent_id == ""


def test_a_stream_that_breaks_off_says_what_was_delivered(watched: Watched) -> None:
    trace_id, found = "1af7651916cd43dd8448eb211c80319c", list[Span]()
    watched.upstream.script("acme-cut-v1", Stream(("one ", "two ", "three"), cut_after=2))
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        watched.ask("acme-cut", stream=True, headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"})

    def both() -> bool:
        found[:] = [span for span in watched.collector.spans if span.trace_id == trace_id]
        return len(found) == 2

    until(both)
    for span in found:
        assert span.failed
        assert span.attributes["gen_ai.usage.output_tokens"] > 0
    assert {span.attributes["error.type"] for span in found if span.kind == "client"} == {"cut"}


def test_errors_have_their_type(watched: Watched) -> None:
    refused = watched.ask("acme-nothing")
    span = watched.collector.of(refused.headers["x-request-id"])[0]
    assert (span.attributes["error.type"], span.failed) == ("model_not_found", False)
    watched.upstream.script("acme-lost-v1", error(400, code="unknown_parameter"))
    theirs = watched.ask("acme-lost")
    span = watched.collector.of(theirs.headers["x-request-id"])[0]
    assert (span.attributes["counterfoil.outcome"], span.failed) == ("failed", False)
    watched.upstream.script("acme-lost-v1", error(500))
    failed = watched.ask("acme-lost")
    span = watched.collector.of(failed.headers["x-request-id"])[0]
    assert span.attributes["http.response.status_code"] == failed.status_code
    assert (span.attributes["counterfoil.outcome"], span.failed) == ("failed", True)
    assert span.attributes["error.type"]
    attempts = watched.collector.of(failed.headers["x-request-id"], 2)[1:]
    assert {attempt.attributes["error.type"] for attempt in attempts} == {"status_500"}
    assert all(attempt.failed for attempt in attempts)


def test_nothing_that_was_said_is_in_a_span(watched: Watched) -> None:
    watched.upstream.queue(Stream(pieces=("an-answer-that-nobody-may-see",)))
    response = watched.ask(stream=True, user="somebody@example.com")
    watched.collector.of(response.headers["x-request-id"])
    sent = b"".join(watched.collector.raw)
    for word in (SECRET_WORDS, "an-answer-that", "somebody", watched.secret, "laptop", "sk-provider"):
        assert word.encode() not in sent


def test_spans_are_sent_before_the_server_ends_and_a_dead_collector_stops_nobody(watched: Watched) -> None:
    with Collector() as collector:
        slow = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        with running_server(watched.house.environment | slow) as server:
            Watched(server, watched.secret, watched.upstream, collector, watched.house, 0).ask("acme-echo")
            assert server.stop() == 0
        assert [span.name for span in collector.spans if span.kind == "server"] == ["chat acme-echo"]
    dead = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    with running_server(watched.house.environment | dead) as server:
        asked = Watched(server, watched.secret, watched.upstream, watched.collector, watched.house, 0).ask(
            "acme-echo"
        )
        assert asked.status_code == 200
        assert server.stop() == 0
