"""OpenTelemetry spans, by the semantic conventions of generative AI. Nothing of it is imported unless it is on.

On if OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) is set and the extra `otel` installed; all
other OTEL_... names mean what OpenTelemetry says. A server span per inference request, a client span per call of
a provider beneath it. No prompt, answer, tenant or key is in a span. Where it is off, each site costs one `if`.

    trace = traces.begin(method, path, traceparent)   # the server; None if it is off
    leg = traces.attempt(target)                      # the pipeline, in the same task; None if it is off
    leg.end("ok", http_status=200, usage=usage)
    trace.end(status, log)
"""

from __future__ import annotations

import logging
import os
import threading
from contextvars import ContextVar
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import gateway
from gateway.telemetry.spans import PROVIDERS, Leg, Target, Trace, called

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

log = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
HTTP = "http/protobuf"
MODULES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")

on = False
_provider: TracerProvider | None = None
_tracer: Tracer | None = None


# Of the request that this task answers.
current: ContextVar[Trace | None] = ContextVar("trace", default=None)
leg: ContextVar[Leg | None] = ContextVar("leg", default=None)


def begin(method: str, path: str, traceparent: str = "", request_id: str = "") -> Trace | None:
    """A request has arrived. `traceparent` is the client's header: the span becomes part of its trace."""
    if _tracer is None:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent}, context=Context())
    facts = {
        "http.request.method": method,
        "url.path": path[:512],
        "url.scheme": "http",
        "gen_ai.operation.name": "chat",
        "counterfoil.request_id": request_id,
    }
    trace = Trace(_tracer.start_span("chat", context=parent, kind=SpanKind.SERVER, attributes=facts), request_id)
    current.set(trace)
    return trace


def attempt(target: Target) -> Leg | None:
    """A provider is called on behalf of the request that this task answers. Until it ends, calls say so upstream."""
    trace = current.get() if on else None
    if _tracer is None or trace is None:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind, set_span_in_context

    trace.provider = PROVIDERS.get(target.protocol, target.protocol)
    parent, name = set_span_in_context(trace.span, Context()), f"chat {target.upstream_model}"
    span = _tracer.start_span(name, context=parent, kind=SpanKind.CLIENT, attributes=called(trace, target))
    begun = Leg(span, streams=trace.streams)
    leg.set(begun)
    return begun


def note_request(body: dict[str, Any]) -> None:
    trace = current.get() if on else None
    if trace is not None:
        trace.note_request(body)


# ---- on and off -----------------------------------------------------------------------------------------------


def wanted() -> bool:
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return os.environ.get("OTEL_TRACES_EXPORTER", "").strip() != "none" and any(map(os.environ.get, ENDPOINTS))


def problem() -> tuple[str, str] | None:
    """Why traces that are wanted cannot be sent, and what to do."""
    if not wanted():
        return None
    if any(_missing(name) for name in MODULES):
        return "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: no traces.", (
            "Install the extra: `pip install 'counterfoil[otel]'`; or set OTEL_SDK_DISABLED=true."
        )
    protocol = next((os.environ[name] for name in PROTOCOLS if os.environ.get(name)), HTTP)
    if protocol != HTTP:
        return f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}: no traces.", f"Only {HTTP} is spoken (port 4318)."
    return None


def _missing(module: str) -> bool:
    try:
        return find_spec(module) is None
    except ModuleNotFoundError:  # of the package around it
        return True


def start() -> None:
    """Once per process, before its first request. Never raises: traces are not worth an outage."""
    global on, _provider, _tracer
    if _provider is not None or not wanted() or problem() is not None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        facts = {"service.version": gateway.__version__, **({} if named else {"service.name": "counterfoil"})}
        _provider = TracerProvider(resource=Resource.create(facts), shutdown_on_exit=False)
        _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        _tracer = _provider.get_tracer("counterfoil", gateway.__version__)
        on = True
    except Exception:
        log.exception("Traces cannot be sent")


def stop() -> None:
    """Send what has not been sent, for some seconds at most."""
    global on, _provider, _tracer
    provider, _provider, _tracer, on = _provider, None, None, False
    if provider is not None:
        sender = threading.Thread(target=provider.shutdown, name="counterfoil-traces", daemon=True)
        sender.start()
        sender.join(FLUSH_SECONDS)
