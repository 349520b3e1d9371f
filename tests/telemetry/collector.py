"""An OpenTelemetry collector on loopback: takes OTLP over HTTP, and remembers the spans.

with Collector() as collector:      # OTEL_EXPORTER_OTLP_ENDPOINT=collector.url
    ... make a request ...
    collector.span("chat acme-chat").attributes["gen_ai.usage.input_tokens"]
"""

from __future__ import annotations

import gzip
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

KINDS = {2: "server", 3: "client"}
WAIT_SECONDS = 90


@dataclass(frozen=True)
class Span:
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    failed: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]


class Collector(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []
        self.raw: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.server_close()

    def of(self, request_id: str, count: int = 1) -> list[Span]:
        """The spans of a request's trace, as soon as there are so many: the server's first."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            (trace_id,) = {
                span.trace_id for span in self.spans if span.attributes.get("counterfoil.request_id") == request_id
            } or {""}
            found = [span for span in self.spans if span.trace_id == trace_id]
            if len(found) >= count and any(span.kind == "server" for span in found):  # it ends last
                return sorted(found, key=lambda span: span.kind != "server")
            assert time.monotonic() < deadline, f"{len(found)} spans of {request_id}"
            time.sleep(0.02)

    def take(self, body: bytes) -> None:
        self.raw.append(body)
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = {pair.key: _value(pair.value) for pair in of_resource.resource.attributes}
            for scope in of_resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        Span(
                            name=span.name,
                            kind=KINDS.get(span.kind, "other"),
                            trace_id=span.trace_id.hex(),
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            failed=span.status.code == 2,
                            attributes={pair.key: _value(pair.value) for pair in span.attributes},
                            resource=resource,
                        )
                    )


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind else None


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        found = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
        if found:
            self.server.take(body)
        self.send_response(200 if found else 404)
        self.send_header("content-type", "application/x-protobuf")
        self.end_headers()
        self.wfile.write(ExportTraceServiceResponse().SerializeToString())

    def log_message(self, format: str, *arguments: object) -> None:
        """Not in the tests' output."""
