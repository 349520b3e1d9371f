"""POST /chat/completions."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from ninja import Router

from apiv1.bodies import json_body, printable
from apiv1.idempotency import runner_of
from apiv1.requests import ApiRequest
from apiv1.schemas import chat
from apiv1.sse import event_stream
from gateway.errors import GatewayError
from gateway.pipeline import Call
from gateway.telemetry import traces

router = Router(tags=["Chat"])


@router.post(
    "/chat/completions",
    summary="Create chat completion",
    operation_id="createChatCompletion",
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": chat.SCHEMA}}},
        "responses": {200: {"description": "chat.completion, or with stream: true events of chat.completion.chunk"}},
    },
)
async def create_chat_completion(request: ApiRequest) -> HttpResponseBase:
    """A model's answer to a conversation, whole or as a stream of events."""
    body = chat.parse(json_body(request), default_model=settings.DEFAULT_MODEL)
    call = call_of(request, body)
    if (keep_alive := getattr(request, "keep_alive", None)) is not None:
        keep_alive.begin(stream=call.stream, headers=lambda: call.headers)
    traces.note_request(body)
    try:
        runner = await runner_of(request, call)
        if call.stream:
            events = await runner.open_stream(call)
            return event_stream(request, events, lambda: log_outcome(request, call), call.headers)
        answer = await runner.complete(call)
    except GatewayError as refused:
        refused.headers = {**call.headers, **refused.headers}
        request.auth = call.caller  # as it was found to be by now
        raise
    finally:
        log_outcome(request, call)
    return HttpResponse(answer, content_type="application/json", headers=call.headers)


def call_of(request: ApiRequest, body: dict[str, Any]) -> Call:
    log = request.counterfoil
    options = body.get("stream_options") or {}
    return Call(
        caller=request.auth,
        body=body,
        model=body["model"],
        stream=body.get("stream", False),
        include_usage=options.get("include_usage") or False,
        reload=request.reload,
        request_id=log.request_id,
        client_request_id=printable(log.client_request_id, 512),
        end_user=printable(body.get("user") or body.get("safety_identifier") or "", 256),
    )


def log_outcome(request: ApiRequest, call: Call) -> None:
    """What the log line says of the model and its tokens."""
    log = request.counterfoil
    log.outcome, log.usage, log.first_byte_ms = call.outcome, call.usage, call.first_byte_ms
    log.model = call.public_model or printable(call.model, 200)
    usage = call.usage
    if usage is not None:
        log.input_tokens = usage.input_tokens + usage.cached_input_tokens + usage.cache_write_tokens
        log.output_tokens = usage.output_tokens + usage.reasoning_tokens
