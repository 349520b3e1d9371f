"""`Idempotency-Key`: what a POST runs its call with."""

from __future__ import annotations

from django.conf import settings

from apiv1.limits import rates_of
from apiv1.requests import ApiRequest
from gateway import pipeline
from gateway.pipeline import Call
from gateway.replies.once import HEADER, Replay, Runner, runner_for


async def runner_of(request: ApiRequest, call: Call) -> Runner:
    """The pipeline; with the header, what sees to it that the call is run once. Raises InvalidRequest (400, 409)."""
    key = request.headers.get(HEADER)
    if key is None or not settings.IDEMPOTENCY_HOURS:
        return pipeline
    runner = await runner_for(call, key)
    if isinstance(runner, Replay):  # asks no limit, so nobody has told how they stand
        request.counterfoil.replayed = True
        call.headers |= await rates_of(call.caller)
    return runner
