"""A request with an `Idempotency-Key` is run once; the next one with that key, tenant and body gets its answer again.

`runner_for` gives what the view runs its call with, in the place of `gateway.pipeline`: the one who runs it (`Once`),
or what was answered (`Replay`). A repeat makes no hold, no record and no charge, but its key must be good and may
call that model, at this moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import string
from collections import Counter
from collections.abc import AsyncIterator
from typing import Protocol

import orjson
from django.conf import settings

from gateway import pipeline, routing, snapshots
from gateway.errors import GatewayError, InvalidRequest, Unavailable
from gateway.ledger import desk
from gateway.pipeline import Call
from gateway.replies import claims, production, running, thread
from gateway.replies.claim import Claim
from gateway.replies.claims import Asked, Finding, Found
from tenants import keys

HEADER = "Idempotency-Key"
LONGEST = 255
VISIBLE = frozenset(string.digits + string.ascii_letters + string.punctuation)
# Who repeats a request that is still being answered waits so long, then is told to come again: official clients do.
WAIT_SECONDS = 5.0
FIRST_LOOK_SECONDS, LAST_LOOK_SECONDS = 0.1, 1.0
WAITING = 64  # of a tenant, in this process; each asks the database once a second
LOOK_UP_SECONDS = 10.0  # as an admission: a database that hangs is a 503 here too
PIECE = 64 * 1024  # bytes of a stream in one write


class Runner(Protocol):
    """What a view needs of `gateway.pipeline`."""

    async def complete(self, call: Call) -> bytes: ...

    async def open_stream(self, call: Call) -> AsyncIterator[bytes]: ...


class Once:
    """The call is run, apart from the client's connection, and its answer kept."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim

    async def complete(self, call: Call) -> bytes:
        return await production.complete(call, self._claim)

    async def open_stream(self, call: Call) -> AsyncIterator[bytes]:
        return await production.open_stream(call, self._claim)


class Replay:
    """What was answered before, byte for byte."""

    def __init__(self, found: Found) -> None:
        self._answer = found.answer
        self._headers = {**found.headers, "idempotent-replayed": "true"}
        if found.request_id is not None:  # the usage record has that one's id, not this one's
            self._headers["x-counterfoil-original-request-id"] = f"req_{found.request_id.hex}"

    async def complete(self, call: Call) -> bytes:
        call.headers |= self._headers
        return self._answer

    async def open_stream(self, call: Call) -> AsyncIterator[bytes]:
        call.headers |= self._headers
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._answer), PIECE):
            yield self._answer[start : start + PIECE]


_waiting: Counter[int] = Counter()  # by tenant


async def runner_for(call: Call, key: str) -> Runner:
    """Raises InvalidRequest (400, 409) for a key that is malformed, in use, or another request's."""
    if not 1 <= len(key) <= LONGEST or not VISIBLE.issuperset(key):
        raise malformed()
    asked = _asked(call, key)
    found = await _take(asked)
    if found.finding is Finding.RUNNING:
        found = await _wait(asked)
    if found.finding is Finding.OURS:
        return Once(Claim(found.id, asked))
    call.caller = await pipeline.ensure_fresh(call.caller, call.reload)
    facts = routing.find_model(await snapshots.catalogue(), call.caller, call.model)
    call.public_model = facts.public_id
    if found.finding is not Finding.KEPT:
        raise _refusal(found.finding)
    return Replay(found)


def malformed() -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{HEADER}': expected one header with 1 to {LONGEST} visible ASCII characters without spaces.",
        param=HEADER,
        code="invalid_idempotency_key",
    )


def _asked(call: Call, key: str) -> Asked:
    """Bodies are the same if they say the same: whitespace, the order of keys and null parameters do not count."""
    pepper, tenant_id = settings.KEY_PEPPER.encode(), call.caller.tenant_id
    body = orjson.dumps([call.endpoint, call.body], option=orjson.OPT_SORT_KEYS)
    return Asked(
        tenant_id=tenant_id,
        key=keys.digest(f"idempotency:{tenant_id}:{key}", pepper),
        body=keys.digest(f"body:{tenant_id}:{body.decode()}", pepper),
        request_id=call.request_id,
        process_id=desk.current().writer.link.process_id,
        stream=call.stream,
    )


async def _take(asked: Asked) -> Found:
    """A client that leaves while its claim is made, or is told to come again, must not leave the claim behind."""
    taking = running.start(thread.run(asked.tenant_id, claims.take, asked))
    try:
        async with asyncio.timeout(LOOK_UP_SECONDS):
            return await asyncio.shield(taking)
    except (asyncio.CancelledError, TimeoutError) as exc:
        running.start(_give_back(taking, asked))
        if isinstance(exc, TimeoutError):
            raise Unavailable("The service is temporarily unavailable.", retry_after=2) from exc
        raise


async def _give_back(taking: asyncio.Task[Found], asked: Asked) -> None:
    with contextlib.suppress(GatewayError):
        found = await taking
        if found.finding is Finding.OURS:
            await Claim(found.id, asked).release()


async def _wait(asked: Asked) -> Found:
    """What there is when the first request has ended, or after a while."""
    found, tenant_id = Found(Finding.RUNNING), asked.tenant_id
    if _waiting[tenant_id] >= WAITING:
        return found
    loop = asyncio.get_running_loop()
    until, pause = loop.time() + _patience_s(asked.stream), FIRST_LOOK_SECONDS
    _waiting[tenant_id] += 1
    try:
        while found.finding is Finding.RUNNING and loop.time() < until:
            await asyncio.sleep(pause)
            found = await _take(asked)
            pause = min(2 * pause, LAST_LOOK_SECONDS)
    finally:
        _waiting[tenant_id] -= 1
        if not _waiting[tenant_id]:
            del _waiting[tenant_id]
    return found


def _patience_s(stream: bool) -> float:
    """A keep-alive begins the answer with 200: after it a 409, and when to come again, could not be told."""
    silence: float = settings.SSE_KEEP_ALIVE_SECONDS if stream else settings.WHOLE_KEEP_ALIVE_SECONDS
    return min(WAIT_SECONDS, silence / 2) if silence else WAIT_SECONDS


def _refusal(finding: Finding) -> GatewayError:
    """400 for another body and 409 for a key in use, as Stripe. Official clients repeat a 409 unless told not to."""
    if finding is Finding.OTHER_BODY:
        return InvalidRequest(
            f"This {HEADER} was used for a request with another body. Use a new key for each new request.",
            param=HEADER,
            code="idempotency_key_reused",
        )
    if finding is Finding.RUNNING:
        return _conflict(
            f"A request with this {HEADER} is still being answered. Please try again.",
            "idempotency_key_in_use",
            {"retry-after": "1", "x-should-retry": "true"},
        )
    code, what = "idempotency_answer_lost", "was charged, but its answer was lost before it could be kept"
    if finding is Finding.TOO_LARGE:
        code, what = "idempotency_answer_too_large", "was answered, but the answer was too large to be kept"
    text = f"The request with this {HEADER} {what}. To run it again, and be charged again, use a new key."
    return _conflict(text, code, {"x-should-retry": "false"})


def _conflict(text: str, code: str, headers: dict[str, str]) -> InvalidRequest:
    return InvalidRequest(text, param=HEADER, code=code, status=409, headers=headers)
