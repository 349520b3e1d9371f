"""`Idempotency-Key`: what a POST runs its call with."""

from __future__ import annotations

from django.conf import settings

from apiv1.limits import rates_of
from apiv1.requests import ApiRequest
from gateway import pipeline
from gateway.pipeline import Call
from gateway.replies.once import HEADER, Replay, Runner, malformed, runner_for

RAW = HEADER.lower().encode()


async def runner_of(request: ApiRequest, call: Call) -> Runner:
    """The pipeline; with the header, what sees to it that the call is run once. Raises InvalidRequest (400, 409)."""
    key = request.headers.get(HEADER)
    if key is None or not settings.IDEMPOTENCY_HOURS:
        return pipeline
    if [name for name, _ in request.scope["headers"]].count(RAW) > 1:
        raise malformed()  # joined by a comma, which is Django's way, they would be a key that nobody chose
    runner = await runner_for(call, key)
    if isinstance(runner, Replay):  # asks no limit, so nobody has told how they stand
        request.counterfoil.replayed = True
        call.headers |= await rates_of(call.caller)
    return runner
