"""Every metric there is. docs/operations.md has the same table for people (a test compares them)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
# How a gauge of several processes becomes one: added up, or the value that was set last.
Merge = Literal["sum", "latest"]


@dataclass(frozen=True)
class Family:
    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()  # of a histogram's buckets, without +Inf
    merge: Merge = "sum"
    scale: int = 1  # kept as so many parts of a unit each: whole numbers add up exactly, fractions do not

    @property
    def size(self) -> int:
        """Slots of one series: a histogram has its buckets, +Inf and the sum; a `latest` gauge its time."""
        if self.kind == "histogram":
            return len(self.bounds) + 2
        return 2 if self.merge == "latest" else 1


FAMILIES: dict[str, Family] = {}


def _declare(
    kind: Kind,
    name: str,
    help: str,
    *labels: str,
    bounds: tuple[float, ...] = (),
    merge: Merge = "sum",
    scale: int = 1,
) -> Family:
    family = FAMILIES[name] = Family(name, kind, help, labels, bounds, merge, scale)
    return family


WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800)
FIRST = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 20, 60)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)
COMMIT = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1, 5)

REQUESTS = _declare(
    "counter",
    "counterfoil_requests",
    "Inference requests that ended; code is the HTTP status, 499 if the client left before its answer began.",
    *("endpoint", "model", "status", "code"),
)
REQUEST_SECONDS = _declare(
    "histogram",
    "counterfoil_request_seconds",
    "From the request's arrival to its last byte, of admitted requests.",
    *("endpoint", "model"),
    bounds=WHOLE,
)
FIRST_TOKEN_SECONDS = _declare(
    "histogram",
    "counterfoil_first_token_seconds",
    "From the request's arrival to the first byte of its answer, of streams.",
    *("endpoint", "model"),
    bounds=FIRST,
)
TOKEN_SECONDS = _declare(
    "histogram",
    "counterfoil_token_seconds",
    "Mean time between two tokens of a streamed answer, one observation per request.",
    *("endpoint", "model"),
    bounds=BETWEEN,
)
TOKENS = _declare(
    "counter", "counterfoil_tokens", "Tokens used, by class; the classes do not overlap.", "model", "class"
)
CHARGE = _declare(
    "counter",
    "counterfoil_charge",
    "What tenants were charged, in units of the currency. A float, for graphs: the books are in the ledger.",
    "currency",
    scale=1_000_000_000,  # nano-units
)
REFUSALS = _declare(
    "counter", "counterfoil_refusals", "Requests that were refused before they were admitted, by error code.", "code"
)
HTTP_RESPONSES = _declare(
    "counter", "counterfoil_http_responses", "Every answer of the server, by kind of path.", "route", "code"
)
ATTEMPTS = _declare(
    "counter", "counterfoil_attempts", "Calls of a provider and how they ended.", "deployment", "provider", "outcome"
)
ATTEMPT_SECONDS = _declare(
    "histogram", "counterfoil_attempt_seconds", "How long calls of a provider took.", "deployment", bounds=WHOLE
)
BREAKER_STATE = _declare(
    "gauge",
    "counterfoil_breaker_state",
    "The deployment's circuit breaker: 0 closed, 1 half open, 2 open.",
    "deployment",
    merge="latest",
)
DESK_QUEUE = _declare("gauge", "counterfoil_desk_queue", "Admissions and settlements that wait for the desk.")
DESK_BACKLOG = _declare(
    "gauge", "counterfoil_desk_backlog", "Settlements and releases that wait for the database, or for a locked row."
)
DESK_BATCH_SIZE = _declare(
    "histogram", "counterfoil_desk_batch_size", "Items that the desk booked in one round trip.", bounds=BATCH
)
DESK_BATCH_SECONDS = _declare(
    "histogram", "counterfoil_desk_batch_seconds", "How long that round trip took.", bounds=COMMIT
)
IN_FLIGHT = _declare("gauge", "counterfoil_in_flight", "HTTP requests that are being answered.")
CONNECTIONS = _declare("gauge", "counterfoil_connections", "Open client connections.")
CLIENTS_LEFT = _declare("counter", "counterfoil_clients_left", "Clients that left before their answer ended.")
STREAMS_BROKEN = _declare(
    "counter", "counterfoil_streams_broken", "Streams that were broken off with an error event."
)
REPLAYS = _declare("counter", "counterfoil_replays", "Answers given again for an Idempotency-Key.")

# Asked of the machine when somebody looks (gateway.telemetry.processes), under the names that dashboards know.
BUILD_INFO = _declare("gauge", "counterfoil_build_info", "Always 1.", "version", "python")
PROCESSES = _declare("gauge", "counterfoil_processes", "Web processes whose numbers these are.")
RESIDENT_BYTES = _declare("gauge", "process_resident_memory_bytes", "Resident memory of all web processes.")
OPEN_FDS = _declare("gauge", "process_open_fds", "Open file descriptors of all web processes.")
MAX_FDS = _declare("gauge", "process_max_fds", "How many file descriptors they may have open, added up.")
FDS_RATIO = _declare("gauge", "counterfoil_fds_ratio", "Share of its file descriptors that the fullest process uses.")
CPU_SECONDS = _declare("counter", "process_cpu_seconds", "CPU time of the web processes that live.")
