"""What the rest of the house tells: one function for each thing that happens, a microsecond or less each.

No function here raises, waits or makes a label of what a client sent. Times are in seconds.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import Protocol

from gateway.telemetry import families, labels
from gateway.telemetry.families import Family
from gateway.telemetry.slots import slots

STATES = {"closed": 0.0, "half_open": 1.0, "open": 2.0}


class Tokens(Protocol):
    """gateway.upstreams.base.Usage."""

    @property
    def input_tokens(self) -> int: ...
    @property
    def cached_input_tokens(self) -> int: ...
    @property
    def cache_write_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def reasoning_tokens(self) -> int: ...


class _Model:
    """Where the numbers of one endpoint and model are."""

    __slots__ = ("between", "ended", "endpoint", "first", "name", "tokens", "whole")

    def __init__(self, endpoint: str, name: str) -> None:
        self.endpoint, self.name = labels.endpoints.of(endpoint), labels.models.of(name)
        pair = (self.endpoint, self.name)
        self.whole = slots.place(families.REQUEST_SECONDS, pair)
        self.first = slots.place(families.FIRST_TOKEN_SECONDS, pair)
        self.between = slots.place(families.TOKEN_SECONDS, pair)
        self.ended: dict[tuple[str, int], int] = {}
        kinds = ("input", "cached_input", "cache_write", "output", "reasoning")
        self.tokens = [slots.place(families.TOKENS, (self.name, kind)) for kind in kinds]


_models: dict[tuple[str, str], _Model] = {}
_single: dict[tuple[str, tuple[str, ...]], int] = {}  # places of series with a few labels
_attempts: dict[tuple[str | int, int, str], tuple[int, int]] = {}  # places of a count and of the durations


def request_ended(
    *,
    model: str,
    endpoint: str,
    status: str,
    http_status: int,
    seconds: float,
    stream: bool = False,
    first_byte_s: float | None = None,
    output_s: float | None = None,
    usage: Tokens | None = None,
) -> None:
    """An admitted request ended: completed, failed or interrupted.

    `model`: the public id that the catalogue found, "" if none. `first_byte_s`: since its arrival. `output_s`: from
    its first byte to its last. What it was charged, the desk tells when it is booked.
    """
    found = _models.get((endpoint, model)) or _model(endpoint, model)
    values = slots.values
    values[found.ended.get((status, http_status)) or _ended(found, status, http_status)] += 1
    _observe(found.whole, families.WHOLE, seconds)
    if stream and first_byte_s is not None:  # of a whole answer, it is the time of all of it
        _observe(found.first, families.FIRST, first_byte_s)
    if usage is not None:
        _count_tokens(found.tokens, usage)
        pieces = usage.output_tokens + usage.reasoning_tokens
        if stream and output_s is not None and pieces > 1:
            _observe(found.between, families.BETWEEN, output_s / (pieces - 1))


def request_refused(*, endpoint: str, http_status: int, code: str) -> None:
    """An inference request that was not admitted: no key, no sense, no room. `code` is the error's, or its type."""
    found = _models.get((endpoint, "")) or _model(endpoint, "")
    slots.values[found.ended.get(("refused", http_status)) or _ended(found, "refused", http_status)] += 1
    slots.values[_place(families.REFUSALS, code)] += 1


def http_ended(route: str, http_status: int) -> None:
    """Any request; `route` is one of a few kinds of path."""
    slots.values[_place(families.HTTP_RESPONSES, route, str(http_status))] += 1


def attempt_ended(*, provider: str | int, deployment_id: int, outcome: str, seconds: float) -> None:
    """A call of a provider ended: ok, connect, timeout, status_503, ... Ids, since names change."""
    count, duration = _attempts.get((provider, deployment_id, outcome)) or _attempt(provider, deployment_id, outcome)
    slots.values[count] += 1
    _observe(duration, families.WHOLE, seconds)


def breaker_changed(deployment_id: int, state: object) -> None:
    """`state`: closed, half_open or open, as a string or an enum of them."""
    name = str(getattr(state, "name", state)).lower()
    place = _place(families.BREAKER_STATE, str(deployment_id))
    slots.values[place] = STATES.get(name, 0.0)
    slots.values[place + 1] = time.time()


def charged(amount: int, currency: str) -> None:
    """A settlement is in the books: nano-units of the currency."""
    slots.values[_place(families.CHARGE, currency)] += amount


def desk_batch(size: int, seconds: float) -> None:
    _observe(_place(families.DESK_BATCH_SIZE), families.BATCH, size)
    _observe(_place(families.DESK_BATCH_SECONDS), families.COMMIT, seconds)


def desk_queue(length: int) -> None:
    slots.values[_place(families.DESK_QUEUE)] = length


def desk_backlog(length: int) -> None:
    slots.values[_place(families.DESK_BACKLOG)] = length


def in_flight(count: int) -> None:
    slots.values[_place(families.IN_FLIGHT)] = count


def connections(count: int) -> None:
    slots.values[_place(families.CONNECTIONS)] = count


def client_left() -> None:
    slots.values[_place(families.CLIENTS_LEFT)] += 1


def stream_broken() -> None:
    slots.values[_place(families.STREAMS_BROKEN)] += 1


def answer_replayed() -> None:
    slots.values[_place(families.REPLAYS)] += 1


def _observe(place: int, bounds: tuple[float, ...], value: float) -> None:
    values = slots.values
    values[place + bisect_left(bounds, value)] += 1
    values[place + len(bounds) + 1] += value


def _count_tokens(places: list[int], usage: Tokens) -> None:
    values = slots.values
    if usage.input_tokens:
        values[places[0]] += usage.input_tokens
    if usage.cached_input_tokens:
        values[places[1]] += usage.cached_input_tokens
    if usage.cache_write_tokens:
        values[places[2]] += usage.cache_write_tokens
    if usage.output_tokens:
        values[places[3]] += usage.output_tokens
    if usage.reasoning_tokens:
        values[places[4]] += usage.reasoning_tokens


def _model(endpoint: str, name: str) -> _Model:
    known = (labels.endpoints.of(endpoint), labels.models.of(name))
    found = _models.get(known) or _Model(*known)
    if known == (endpoint, name) or not name:  # never remembered under a name that has no place of its own
        _models[endpoint, name] = found
    _models[known] = found
    return found


def _ended(found: _Model, status: str, http_status: int) -> int:
    place = slots.place(families.REQUESTS, (found.endpoint, found.name, status, str(http_status)))
    found.ended[status, http_status] = place
    return place


def _attempt(provider: str | int, deployment_id: int, outcome: str) -> tuple[int, int]:
    given = str(deployment_id), str(provider), outcome
    places = _place(families.ATTEMPTS, *given), _place(families.ATTEMPT_SECONDS, given[0])
    if (families.ATTEMPTS.name, given) in _single:  # else it has no place of its own
        _attempts[provider, deployment_id, outcome] = places
    return places


BOUNDED = {
    "code": labels.codes,
    "currency": labels.currencies,
    "deployment": labels.deployments,
    "outcome": labels.outcomes,
    "provider": labels.providers,
}


def _place(family: Family, *given: str) -> int:
    known = _single.get((family.name, given))
    if known is not None:
        return known
    bounded = tuple(
        BOUNDED[name].of(value) if name in BOUNDED else value
        for name, value in zip(family.labels, given, strict=True)
    )
    place = slots.place(family, bounded)
    if family is families.ATTEMPT_SECONDS:
        slots.place(families.BREAKER_STATE, bounded)  # closed, until somebody says otherwise
    if bounded == given:
        _single[family.name, given] = place
    return place
