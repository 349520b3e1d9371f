"""Spans and what is in them, by the semantic conventions of generative AI (as of late 2026, all in development).

Nothing that a prompt, an answer, a tenant or a key could be told from. traces.py opens them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from gateway.errors import CLIENT_LEFT
from gateway.telemetry import labels
from gateway.telemetry.metrics import Tokens

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from gateway.logs import RequestLog

# The conventions' names of those whom our protocols are named for; any other is its protocol's.
PROVIDERS = {"azure": "azure.ai.openai", "gemini": "gcp.gemini"}
PARAMETERS = ("temperature", "top_p", "frequency_penalty", "presence_penalty")


class Target(Protocol):
    """gateway.upstreams.base.Target."""

    @property
    def deployment_id(self) -> int: ...
    @property
    def provider(self) -> str: ...
    @property
    def protocol(self) -> str: ...
    @property
    def base_url(self) -> str: ...
    @property
    def upstream_model(self) -> str: ...


class Trace:
    """One request of a client."""

    __slots__ = ("asked", "parameters", "provider", "request_id", "span")

    def __init__(self, span: Span, request_id: str = "") -> None:
        self.span, self.request_id = span, request_id
        self.asked = ""
        self.provider = ""
        self.parameters: dict[str, Any] = {}

    @property
    def streams(self) -> bool:
        return "gen_ai.request.stream" in self.parameters

    def note_request(self, body: dict[str, Any]) -> None:
        """What it asks for, in OpenAI's names; never its messages."""
        self.asked = str(body.get("model", ""))[:200]
        if self.span.is_recording():
            self.parameters = parameters(body)
            self.span.set_attributes(self.parameters)

    def end(self, status: int, request: RequestLog) -> None:
        """`status` is the answer's, CLIENT_LEFT if the client left before."""
        span = self.span
        if span.is_recording():
            span.update_name(f"chat {request.model or self.asked}".rstrip())
            span.set_attributes(answered(self, status, request))
            # A 4xx is no error of a server's, by the conventions. A status below that may have come before the fault.
            if status >= CLIENT_LEFT or (status < 400 and request.outcome in ("failed", "interrupted")):
                from opentelemetry.trace import StatusCode

                span.set_status(StatusCode.ERROR)
        span.end()


class Leg:
    """One call of a provider."""

    __slots__ = ("span", "streams")

    def __init__(self, span: Span, *, streams: bool = False) -> None:
        self.span, self.streams = span, streams

    @property
    def traceparent(self) -> str:
        context = self.span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def answered(self, seconds: float) -> None:
        """Its first byte is here."""
        if self.streams:
            self.span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)

    def end(self, outcome: str, *, http_status: int | None = None, usage: Tokens | None = None) -> None:
        """`outcome`: ok, connect, timeout, status_503, ... as the attempt is recorded."""
        span = self.span
        if span.is_recording():
            if http_status:
                span.set_attribute("http.response.status_code", http_status)
            if usage is not None:
                span.set_attributes(tokens(usage))
            if outcome != "ok":
                from opentelemetry.trace import StatusCode

                span.set_attribute("error.type", outcome)
                span.set_status(StatusCode.ERROR)
        span.end()


def parameters(body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"gen_ai.request.stream": True} if body.get("stream") else {}
    for name in PARAMETERS:
        if isinstance(body.get(name), int | float):
            found[f"gen_ai.request.{name}"] = float(body[name])
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if isinstance(limit, int):
        found["gen_ai.request.max_tokens"] = limit
    if isinstance(body.get("seed"), int):
        found["gen_ai.request.seed"] = body["seed"]
    if isinstance(body.get("n"), int) and body["n"] != 1:
        found["gen_ai.request.choice.count"] = body["n"]
    return found


def called(trace: Trace, target: Target) -> dict[str, Any]:
    """What a call of a provider is begun with."""
    found = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": trace.provider,
        **trace.parameters,
        "gen_ai.request.model": target.upstream_model,
        "counterfoil.deployment_id": target.deployment_id,
        "counterfoil.provider": target.provider,
        "counterfoil.request_id": trace.request_id,
    }
    with suppress(ValueError):  # no URL: whoever calls it will say so
        url = urlsplit(target.base_url)
        if url.hostname:
            port = url.port or (80 if url.scheme == "http" else 443)
            found |= {"server.address": url.hostname, "server.port": port}
    return found


def answered(trace: Trace, status: int, request: RequestLog) -> dict[str, Any]:
    found: dict[str, Any] = {
        "http.response.status_code": status,
        "gen_ai.provider.name": trace.provider or "counterfoil",  # refused before anybody was asked
    }
    if trace.asked:
        found["gen_ai.request.model"] = trace.asked
    if request.outcome:
        found["counterfoil.outcome"] = request.outcome
    if request.replayed:
        found["counterfoil.replayed"] = True
    if request.outcome == "completed":
        found["gen_ai.response.model"] = request.model
        found["gen_ai.response.id"] = f"chatcmpl-{request.request_id.hex}"
    if trace.streams and request.first_byte_ms is not None:
        found["gen_ai.response.time_to_first_chunk"] = request.first_byte_ms / 1000
    if request.usage is not None:
        found |= tokens(request.usage)
    if request.outcome == "interrupted" or status >= 400:
        unnamed = "client_left" if request.outcome == "interrupted" and status < 500 else str(status)
        # A provider's 400 has a code of its own.
        found["error.type"] = labels.codes.of(request.error_code) if request.error_code else unnamed
    return found


def tokens(usage: Tokens) -> dict[str, int]:
    """The conventions count cached tokens among those of the input, and reasoning among those of the output."""
    found = {
        "gen_ai.usage.input_tokens": usage.input_tokens + usage.cached_input_tokens + usage.cache_write_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens + usage.reasoning_tokens,
    }
    if usage.cached_input_tokens:
        found["gen_ai.usage.cache_read.input_tokens"] = usage.cached_input_tokens
    if usage.cache_write_tokens:
        found["gen_ai.usage.cache_write.input_tokens"] = usage.cache_write_tokens
    if usage.reasoning_tokens:
        found["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
    return found
