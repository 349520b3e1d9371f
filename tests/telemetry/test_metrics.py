"""What each function of gateway.telemetry.metrics leaves on the page."""

from __future__ import annotations

from enum import Enum

import pytest

from gateway.telemetry import exposition, metrics
from gateway.telemetry.slots import CAPACITY, Slots
from gateway.upstreams.base import Usage
from tests.telemetry.conftest import Read
from tests.telemetry.samples import parsed

CHAT = {"endpoint": "chat.completions", "model": "acme-chat"}


def end(model: str = "acme-chat", *, status: str = "completed", http_status: int = 200, **facts: object) -> None:
    given: dict[str, object] = {"seconds": 2.0} | facts
    metrics.request_ended(
        model=model,
        endpoint="chat.completions",
        status=status,
        http_status=http_status,
        **given,  # type: ignore[arg-type]
    )


def test_a_request_is_counted_with_its_times_and_tokens(read: Read) -> None:
    usage = Usage(7, cached_input_tokens=3, output_tokens=11, reasoning_tokens=0)
    end(stream=True, first_byte_s=0.3, output_s=1.0, usage=usage)
    assert read("counterfoil_requests_total", **CHAT, status="completed", code="200") == 1
    assert read("counterfoil_request_seconds_sum", **CHAT) == 2.0
    assert read("counterfoil_request_seconds_bucket", **CHAT, le="1.0") == 0
    assert read("counterfoil_request_seconds_bucket", **CHAT, le="2.5") == 1
    assert read("counterfoil_request_seconds_bucket", **CHAT, le="+Inf") == 1
    assert read("counterfoil_first_token_seconds_sum", **CHAT) == 0.3
    assert read("counterfoil_token_seconds_sum", **CHAT) == pytest.approx(0.1)
    assert read("counterfoil_token_seconds_count", **CHAT) == 1
    counted = {name: read("counterfoil_tokens_total", **{"model": "acme-chat", "class": name}) for name in CLASSES}
    assert counted == {"input": 7, "cached_input": 3, "cache_write": 0, "output": 11, "reasoning": 0}


CLASSES = ("input", "cached_input", "cache_write", "output", "reasoning")


@pytest.mark.parametrize(
    "facts",
    [
        {"stream": False, "output_s": 1.0, "usage": Usage(output_tokens=9)},
        {"stream": True, "output_s": None, "usage": Usage(output_tokens=9)},
        {"stream": True, "output_s": 1.0, "usage": Usage(output_tokens=1)},
        {"stream": True, "output_s": 1.0, "usage": None},
    ],
)
def test_time_between_tokens_needs_a_stream_with_two(read: Read, facts: dict[str, object]) -> None:
    end(**facts)
    assert read("counterfoil_token_seconds_count", **CHAT) == 0


def test_a_whole_answer_has_no_first_token(read: Read) -> None:
    """It came all at once: the time of all of it would make the model look slow to begin."""
    end(stream=False, first_byte_s=30.0, output_s=0.0, usage=Usage(output_tokens=9))
    assert read("counterfoil_first_token_seconds_count", **CHAT) == 0
    assert read("counterfoil_request_seconds_count", **CHAT) == 1


def test_a_value_beyond_every_bound_is_in_the_last_bucket_alone(read: Read) -> None:
    end(seconds=1e6)
    assert read("counterfoil_request_seconds_bucket", **CHAT, le="1800.0") == 0
    assert read("counterfoil_request_seconds_bucket", **CHAT, le="+Inf") == 1


def test_refusals_have_no_model(read: Read) -> None:
    for _ in range(2):
        metrics.request_refused(endpoint="chat.completions", http_status=429, code="rate_limit_exceeded")
    refused = {"endpoint": "chat.completions", "model": "other", "status": "refused", "code": "429"}
    assert read("counterfoil_requests_total", **refused) == 2
    assert read("counterfoil_refusals_total", code="rate_limit_exceeded") == 2


def test_attempts_are_counted_by_deployment(read: Read) -> None:
    metrics.attempt_ended(provider=4, deployment_id=9, outcome="status_503", seconds=0.2)
    metrics.attempt_ended(provider=4, deployment_id=9, outcome="ok", seconds=0.3)
    assert read("counterfoil_attempts_total", deployment="9", provider="4", outcome="status_503") == 1
    assert read("counterfoil_attempt_seconds_sum", deployment="9") == 0.5
    assert read("counterfoil_breaker_state", deployment="9") == 0  # nobody has opened it


@pytest.mark.parametrize("run", [1, 2])
def test_a_process_that_has_just_started_knows_no_places_of_another(read: Read, run: int) -> None:
    metrics.attempt_ended(provider=4, deployment_id=9, outcome="ok", seconds=0.3)
    metrics.stream_broken()
    assert read("counterfoil_attempts_total", deployment="9", provider="4", outcome="ok") == 1
    assert read("counterfoil_streams_broken_total") == 1


class State(Enum):
    HALF_OPEN = "half_open"


@pytest.mark.parametrize(("state", "number"), [("closed", 0), (State.HALF_OPEN, 1), ("OPEN", 2), ("resting", 0)])
def test_the_state_of_a_breaker_is_a_number(read: Read, state: object, number: int) -> None:
    metrics.breaker_changed(9, state)
    assert read("counterfoil_breaker_state", deployment="9") == number


def test_the_desk_and_the_server_are_seen(read: Read) -> None:
    metrics.desk_batch(3, 0.004)
    metrics.desk_queue(5)
    metrics.desk_backlog(2)
    metrics.in_flight(7)
    metrics.connections(8)
    metrics.client_left()
    metrics.stream_broken()
    metrics.answer_replayed()
    metrics.charged(1_500_000_000, "EUR")
    metrics.http_ended("models", 200)
    said = {
        "counterfoil_desk_batch_size_sum": 3,
        "counterfoil_desk_batch_seconds_count": 1,
        "counterfoil_desk_queue": 5,
        "counterfoil_desk_backlog": 2,
        "counterfoil_in_flight": 7,
        "counterfoil_connections": 8,
        "counterfoil_clients_left_total": 1,
        "counterfoil_streams_broken_total": 1,
        "counterfoil_replays_total": 1,
    }
    assert {name: read(name) for name in said} == said
    assert read("counterfoil_charge_total", currency="EUR") == 1.5
    assert read("counterfoil_http_responses_total", route="models", code="200") == 1


def test_charges_add_up_exactly(read: Read) -> None:
    for _ in range(10):
        metrics.charged(100_000_000, "EUR")  # a tenth: as floats, ten of them are 0.9999999999999999
    assert read("counterfoil_charge_total", currency="EUR") == 1


def test_what_never_happened_is_zero_and_not_absent(read: Read) -> None:
    assert read("counterfoil_clients_left_total") == 0
    assert read("counterfoil_desk_batch_size_count") == 0
    assert read("counterfoil_processes") == 1
    assert (read("process_resident_memory_bytes") or 0) > 1_000_000


def test_models_beyond_the_first_five_hundred_are_other(read: Read) -> None:
    for number in range(600):
        end(f"model-{number}")
    end("model-3")
    end("")
    done = {"endpoint": "chat.completions", "status": "completed", "code": "200"}
    assert read("counterfoil_requests_total", model="model-3", **done) == 2
    assert read("counterfoil_requests_total", model="model-499", **done) == 1
    assert read("counterfoil_requests_total", model="other", **done) == 101
    page = parsed(exposition.page().body.decode())
    assert len(page["counterfoil_requests"].samples) == 501


def test_no_caller_can_make_series_without_end(fresh: Slots) -> None:
    for number in range(2000):
        metrics.attempt_ended(provider=number, deployment_id=number, outcome=f"x{number}", seconds=0.1)
        metrics.request_refused(endpoint=f"e{number}", http_status=400, code=f"c{number}")
        metrics.charged(1, f"C{number}")
        metrics.breaker_changed(number, "open")
    page = parsed(exposition.page().body.decode())
    assert len(page["counterfoil_attempts"].samples) < 600
    assert len(page["counterfoil_refusals"].samples) <= 101
    assert len(page["counterfoil_charge"].samples) <= 51
    assert len(page["counterfoil_breaker_state"].samples) <= 501


def test_labels_are_escaped(read: Read) -> None:
    end('say "hi"\\\n')
    done = {"endpoint": "chat.completions", "status": "completed", "code": "200"}
    assert read("counterfoil_requests_total", model='say "hi"\\\n', **done) == 1


def test_without_room_numbers_go_nowhere(fresh: Slots, read: Read) -> None:
    fresh._next = CAPACITY - 3
    end(usage=Usage(7, output_tokens=3))
    assert read("counterfoil_tokens_total", **{"model": "acme-chat", "class": "input"}) == 7
    assert read("counterfoil_tokens_total", **{"model": "acme-chat", "class": "output"}) is None
    assert read("counterfoil_requests_total", **CHAT, status="completed", code="200") is None
