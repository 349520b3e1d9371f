"""One JSON line per request and per event, on stderr. Never a secret, a prompt or an answer.

A request's line is written by whoever answered it (gateway.server): one `orjson.dumps`, one write, about 5 µs.
Everything else (Django, Celery, Twisted, asyncio, warnings) goes through `logging` in the same form.
"""

from __future__ import annotations

import logging
import logging.config
import os
import sys
import time
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import orjson

from gateway.errors import CLIENT_LEFT
from gateway.identifiers import uuid7
from gateway.telemetry import metrics, routes
from gateway.telemetry.metrics import Tokens

STDERR = 2
LONGEST_PATH = 512
# Set by `logging` on every record; whatever else is there came in as `extra` and is logged.
STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
# Objects that Django and Channels attach as `extra`: their repr may carry what must not be logged.
UNLOGGED = frozenset({"request", "server_time", "data", "context", "response"})


@dataclass(slots=True)
class RequestLog:
    """What the log line of one request says. `apiv1` fills in the caller, the model and the tokens."""

    method: str
    path: str  # without the query, which may carry anything
    request_id: UUID = field(default_factory=uuid7)  # the ledger's, too
    wire_id: str = field(init=False)  # the x-request-id
    started: float = field(default_factory=time.perf_counter)
    client_request_id: str = ""
    tenant: str = ""  # slug
    key: str = ""  # public id
    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    replayed: bool = False  # the kept answer of an earlier request: no record, no charge
    broken: bool = False  # a stream that broke off after its status line
    error_code: str = ""  # the error's code, or its type if it has none
    # Of an admitted request: completed, failed or interrupted; for metrics and traces.
    outcome: str = ""
    usage: Tokens | None = None
    first_byte_ms: int | None = None

    def __post_init__(self) -> None:
        self.wire_id = "req_" + self.request_id.hex  # once, for the response, the log line and the provider

    def elapsed_ms(self) -> int:
        return int((time.perf_counter() - self.started) * 1000)

    def write(self, status: int) -> None:
        """One line. CLIENT_LEFT: the client left before the answer ended."""
        line: dict[str, object] = {
            "time": now(),
            "level": "info" if status < 500 else "warning" if status == 503 else "error",
            "event": "request",
            "method": self.method,
            "path": self.path[:LONGEST_PATH],
            "status": status,
            "ms": round((time.perf_counter() - self.started) * 1000, 1),
            "request_id": self.wire_id,
        }
        for name in ("tenant", "key", "model", "input_tokens", "output_tokens", "error_code", "client_request_id"):
            value = getattr(self, name)
            if value not in (None, ""):
                line[name] = value
        if self.replayed:
            line["replayed"] = True
        if self.broken:
            line["broken"] = True
        emit(line)
        self._count(status)

    def _count(self, status: int) -> None:
        """Refused before it was admitted: the pipeline, which counts all others, did not see its end."""
        metrics.http_ended(routes.kind(self.path), status)
        if self.replayed:
            metrics.answer_replayed()
        if status >= 400 and status != CLIENT_LEFT and not self.outcome and self.method == "POST":
            endpoint = routes.inference(self.path)
            if endpoint is not None:
                metrics.request_refused(endpoint=endpoint, http_status=status, code=self.error_code)


# What this task answers: lines that are written on the way say so.
answering: ContextVar[RequestLog | None] = ContextVar("answering", default=None)


def emit(line: dict[str, object]) -> None:
    """Write one line with one system call, so that lines of several processes never mix."""
    with suppress(OSError, orjson.JSONEncodeError):  # nobody reads the log, or it is full: answering matters more
        os.write(STDERR, orjson.dumps(line, default=repr, option=orjson.OPT_APPEND_NEWLINE))


class JsonFormatter(logging.Formatter):
    """A log record as one JSON object; tracebacks are a field."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        for name, value in record.__dict__.items():
            if name not in STANDARD and name not in UNLOGGED and not name.startswith("_"):
                line[name] = value
        answered = answering.get()
        if answered is not None:
            line.setdefault("request_id", answered.wire_id)
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


def has_traceback(record: logging.LogRecord) -> bool:
    """For django.request: the request's own line says the status already, a traceback is worth keeping."""
    return record.exc_info is not None


def configure() -> None:
    """Everything that `logging` carries, as JSON lines on stderr. Idempotent."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"traceback": {"()": lambda: has_traceback}},
            "formatters": {"json": {"()": JsonFormatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
            "root": {"level": "INFO", "handlers": ["stderr"]},
            "loggers": {
                "django.request": {"level": "ERROR", "filters": ["traceback"]},
                "django.channels.server": {"level": "ERROR"},
                "daphne": {"level": "WARNING"},
                "twisted": {"level": "WARNING"},
                "aiohttp.access": {"level": "WARNING"},
                "psycopg.pool": {"level": "WARNING"},
            },
        }
    )
    if not sys.warnoptions:
        logging.captureWarnings(True)


_second = (0, "")


def now() -> str:
    """As ISO 8601 has it, in UTC and milliseconds. All but those are formatted once a second."""
    global _second
    second, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
    known, text = _second
    if second != known:
        text = datetime.fromtimestamp(second, UTC).isoformat()[:19]
        _second = second, text
    return f"{text}.{milliseconds:03d}+00:00"
