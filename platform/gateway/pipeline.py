"""THE request path: admit -> call -> relay -> settle (design.md 2).

A hold is durable before a byte goes upstream, and the usage record before the client sees the end. Every way
out of here settles: a whole answer, a refusal or fault of the provider, a client that leaves (its task is
cancelled), a defect of ours. What a killed process leaves is a hold, which the sweeper turns into a record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from gateway import endings, routing
from gateway.calls import Call, Reload
from gateway.catalogue.snapshot import Catalogue
from gateway.errors import (
    GatewayError,
    InternalError,
    InvalidApiKey,
    TenantSuspended,
    Unavailable,
    UpstreamError,
)
from gateway.identifiers import uuid7
from gateway.ledger import desk
from gateway.limits import rate_headers
from gateway.limits.facts import Rule
from gateway.limits.refusals import refusal
from gateway.routing import Route
from gateway.snapshots import catalogue, read, reload_catalogue, rules_of
from gateway.upstreams import tokens
from gateway.upstreams.base import Answer, Stream, Usage
from tenants.facts import Caller

__all__ = ["Call", "complete", "ensure_fresh", "open_stream", "read"]

log = logging.getLogger(__name__)

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
ATTEMPTS = 5  # admissions that may find their facts stale before we say 503
NOTHING = Usage()


async def complete(call: Call) -> bytes:
    """The whole answer as JSON bytes; its record is durable."""
    route = await _admit(call)
    answer: Answer = await _called(call, route, lambda adapter, *request: adapter.complete(*request))
    await _settle(call, route, "completed", answer.usage)
    return answer.body


async def open_stream(call: Call) -> Relay:
    """An open stream of SSE bytes for the client. Faults before the first byte are raised here."""
    route = await _admit(call)
    stream = await _called(call, route, lambda adapter, *request: adapter.open_stream(*request))
    return Relay(call, route, stream)


async def _called(call: Call, route: Route, go: Callable[..., Awaitable[T]]) -> T:
    """What the first provider that answers says: tried again, and elsewhere, until a byte of an answer is there."""
    try:
        answer = await route.trip.run(lambda leg: go(*route.enter(leg)))
    except BaseException as exc:
        fault = _settle_fault(call, route, exc)
        try:
            if fault is exc:
                raise
            raise fault from exc
        finally:
            del fault  # or it would be in a cycle with this frame, and keep the request's body with it
    call.first_byte_ms = endings.milliseconds_since(call.began)
    if route.order.served_model:
        call.headers["x-counterfoil-served-model"] = route.order.served_model
    return answer


class Relay:
    """Iterates over the provider's stream; settles at its end, then yields `[DONE]`.

    A class and not a generator: one that is closed before its first step would settle nothing.
    """

    def __init__(self, call: Call, route: Route, stream: Stream) -> None:
        self._call = call
        self._route = route
        self._stream = stream
        self._chunks = stream.__aiter__()
        self._settled = self._ended = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        try:
            return await self._chunks.__anext__()
        except StopAsyncIteration:
            pass
        except GatewayError as exc:
            self._route.trip.ended("cut", self._stream.usage)
            await self._end("interrupted", exc.code or "upstream_error")
            raise
        except asyncio.CancelledError as exc:
            self._leave(endings.abandonment(exc))
            raise
        except Exception as exc:
            log.exception("Relaying request %s failed", self._call.request_id)
            self._route.trip.ended("internal")
            await self._end("interrupted", "internal_error")
            raise InternalError() from exc
        await self._end("completed")
        return DONE

    async def _end(self, status: str, error_code: str = "") -> None:
        """Durable before anything more is said; the upstream's connection is freed in any case."""
        self._ended = self._settled = True
        settled = _settle(self._call, self._route, status, self._stream.usage, error_code=error_code)
        try:
            await self._stream.aclose()
        finally:
            await settled

    def _leave(self, why: endings.Abandonment = endings.LEFT) -> None:
        if not self._settled:
            self._ended = self._settled = True
            call, route, usage = self._call, self._route, self._stream.usage
            route.trip.ended(why.outcome, usage)
            ending = endings.ending_of(call, route, "interrupted", usage, 200, why.error_code)
            desk.current().book(route.order, ending)
            endings.tell(call, route.order, ending)

    async def aclose(self) -> None:
        """The client has gone, or nobody wants more: stop the provider, book what was delivered."""
        self._leave()
        await self._stream.aclose()

    def __del__(self) -> None:
        if not self._settled:  # dropped without aclose(): the books come first
            self._leave()


async def ensure_fresh(caller: Caller, reload: Reload) -> Caller:
    """The caller as the database knows it at this moment, or the refusal that it deserves."""
    for _ in range(ATTEMPTS):
        verdict = await desk.current().check(caller, (await catalogue()).version, uuid7())
        if verdict == "ok":
            return caller
        caller = await _refresh(verdict, caller, reload)
    raise Unavailable("The service is being reconfigured. Please try again.", retry_after=1)


async def _admit(call: Call) -> Route:
    """Decide on snapshots, have the desk confirm them and write the hold; read them anew if they are stale."""
    now: datetime | None = None
    lowered: int | None = None
    for attempt in range(1, ATTEMPTS + 1):
        snapshot = await catalogue()
        rules = await rules_of(call.caller)
        try:
            route = _routed(call, snapshot, rules, now, lowered)
        except GatewayError as exc:
            # A refusal on old facts would be a false one.
            kept = routing.early_refusal(exc, snapshot, call.caller, call.model, now)
            verdict = await desk.current().check(call.caller, snapshot.version, call.request_id, kept)
            if verdict == "ok":
                raise
        else:
            verdict, detail = await desk.current().admit(route.order)
            if verdict == "ok":
                _admitted(call, route, lowered)
                return route
            if verdict == "limited":
                lowered = _fitted_or_refused(call, route, detail, attempt)
                continue
            if verdict == "full":
                raise routing.without_room(route, call.model, detail)
            if verdict == "window":  # our clock was in another window than the database's
                now = datetime.fromisoformat(detail)
                continue
        call.caller = await _refresh(verdict, call.caller, call.reload)
    raise Unavailable("The service is being reconfigured. Please try again.", retry_after=1)


def _routed(
    call: Call, snapshot: Catalogue, rules: Sequence[Rule], now: datetime | None, lowered: int | None
) -> Route:
    route = routing.choose_route(
        snapshot,
        call.caller,
        request_id=call.request_id,
        endpoint=call.endpoint,
        name=call.model,
        body=call.body,
        stream=call.stream,
        include_usage=call.include_usage,
        rules=rules,
        now=now,
        lowered=lowered,
    )
    route.order.client_request_id, route.order.end_user = call.client_request_id, call.end_user
    return route


def _admitted(call: Call, route: Route, lowered: int | None) -> None:
    order = route.order
    call.public_model = order.model
    route.depart(desk.current().move)
    if order.admitted_state and order.started_at:
        call.headers = rate_headers.of_decided(order.admitted_state, route.rules, order.started_at)
    if lowered is not None:
        call.headers["x-counterfoil-max-tokens"] = str(lowered)


def _fitted_or_refused(call: Call, route: Route, states: list[dict[str, Any]], attempt: int) -> int:
    """The lower cap to try again with, or the refusal with the numbers that it was decided on."""
    cap = routing.fitted(route, states) if attempt < ATTEMPTS else None
    if cap is None:
        raise refusal(states, route.rules, model=call.model, tenant=call.caller.tenant, zone=call.caller.zone)
    return cap


async def _refresh(verdict: str, caller: Caller, reload: Reload) -> Caller:
    """Raises the refusal if there is one; else reads the facts anew."""
    fresh = await reload(caller)
    if verdict == "refused":
        raise InvalidApiKey("Incorrect API key provided.")
    if verdict == "suspended":
        raise TenantSuspended(f"The tenant `{caller.tenant}` is not active. Please contact your administrator.")
    await reload_catalogue()
    return fresh


def _settle_fault(call: Call, route: Route, exc: BaseException) -> BaseException:
    """Book a request that ended before its first byte; returns what to raise."""
    if isinstance(exc, asyncio.CancelledError | GeneratorExit | KeyboardInterrupt | SystemExit):
        # What is in nobody's hands while it waits for its next attempt costs nothing.
        trip, why = route.trip, endings.abandonment(exc)
        trip.left(why.outcome)
        prompt = tokens.estimate_request(route.request) if trip.abandoned else 0
        usage = Usage(input_tokens=prompt, estimated=True) if prompt else NOTHING
        if not trip.abandoned:
            route.order.served_model = ""
        _settle(call, route, "interrupted", usage, http_status=why.http_status, error_code=why.error_code)
        return exc
    if not isinstance(exc, GatewayError):
        log.error("Request %s failed", call.request_id, exc_info=exc)
        exc = InternalError()
    if isinstance(exc, Unavailable):
        exc.headers.setdefault("retry-after", "1")  # the provider may not have said
    code = exc.code or ("upstream_error" if isinstance(exc, UpstreamError) else exc.type)
    route.order.served_model = ""  # nobody has
    _settle(call, route, "failed", NOTHING, http_status=exc.status, error_code=code)
    return exc


def _settle(
    call: Call, route: Route, status: str, usage: Usage, *, http_status: int = 200, error_code: str = ""
) -> asyncio.Future[Any]:
    """Give the ending to the desk, which writes it whether or not the future is awaited."""
    ending = endings.ending_of(call, route, status, usage, http_status, error_code)
    settled = desk.current().settle(route.order, ending)
    endings.tell(call, route.order, ending)
    return settled
