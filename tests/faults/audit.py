"""Compares what the provider served, what the clients got and what the ledger says, request by request."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.faults.fleet import Process
from tests.faults.limits import faults_of_refusal, kind_of_refusal
from tests.faults.load import Sent
from tests.faults.wire import Goodbye
from tests.house import House, Row
from tests.upstream import Served

CLASSES = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
INPUT_PRICE, OUTPUT_PRICE = 1000, 2000  # nano-dollars a token (load.PRICE)
SOON_SECONDS = 6.0  # or twice what a server needs to start, where that is more
Span = tuple[float, float]
STATUSES = frozenset({200, 429, 502, 503, 504})  # with most faults no client may see anything else
MOST_ATTEMPTS = 3  # of a request, as the catalogues here leave it
UNSEEN = ("connect",)  # attempts that no provider saw; one whose client left may have been seen or not
DELIVERED = re.compile(rb'"content": ?"[a-z]')


@dataclass
class Case:
    """All that is known of one request."""

    sent: Sent
    served: list[Served] = field(default_factory=list)
    records: list[Row] = field(default_factory=list)
    adjustments: list[Row] = field(default_factory=list)
    attempts: list[Row] = field(default_factory=list)  # of requests that made several, or did not complete
    left_behind: str = ""  # why its process should have settled it

    def describe(self) -> str:
        sent = self.sent
        upstream = [f"{s.status} {s.outcome}, {s.events} events, usage {s.usage}" for s in self.served]
        wanted = ("request_id", "status", "estimated", "error_code", *CLASSES, "charge", "process_id")
        ledger = [{name: row.get(name) for name in wanted} for row in self.records + self.adjustments]
        tried = [f"{row['number']}: {row['deployment_id']} {row['outcome']}" for row in self.attempts]
        return (
            f"{sent.marker} {sent.model}{' streamed' * sent.stream}, {sent.goodbye}\n"
            f"    the client: {sent.reply.describe()}\n    the provider: {upstream}\n"
            f"    the ledger: {ledger}, attempts {tried}"
        )

    def booked(self, name: str) -> int:
        return sum(int(row[name] or 0) for row in [*self.records, *self.adjustments])

    @property
    def tokens(self) -> tuple[int, int]:
        """Booked, as OpenAI counts them: of the prompt (cached ones too), of the completion. All are priced alike."""
        return sum(self.booked(name) for name in CLASSES[:3]), sum(self.booked(name) for name in CLASSES[3:])

    @property
    def limited(self) -> bool:
        """Refused by a limit of ours. (A 429 of the provider's passes.)"""
        return self.sent.reply.status == 429 and self.sent.reply.end == "whole" and not self.served

    @property
    def calls(self) -> tuple[int, int]:
        """How often a provider saw it by the ledger: at least, at most. What a killed process did, nobody knows."""
        if not self.records:
            return 0, 0
        if self.status == "unknown":
            return 0, MOST_ATTEMPTS
        if not self.attempts:
            return (1, 1) if self.status == "completed" else (0, 0)
        outcomes = [row["outcome"] for row in self.attempts]
        unsure = ("client_left", "server_stopped")
        seen = sum(outcome not in (*UNSEEN, *unsure) for outcome in outcomes)
        return seen, seen + sum(outcome in unsure for outcome in outcomes)

    @property
    def status(self) -> str:
        return str(self.records[0]["status"]) if self.records else "none"


class Audit:
    """Of the requests since a moment of the database's clock."""

    def __init__(
        self,
        house: House,
        sent: Iterable[Sent],
        served: Iterable[Served],
        since: datetime,
        statuses: frozenset[int] = STATUSES,
    ) -> None:
        """`statuses` are those that a client may see."""
        self.house = house
        self.statuses = statuses
        self.cases = {one.marker: Case(one) for one in sent}
        self.strangers: list[str] = []
        for request in served:
            self._case(request.marker, f"served {request.marker}").served.append(request)
        by_id: dict[Any, Case] = {}
        for row in house.query("SELECT * FROM ledger_usagerecord WHERE started_at >= %s", [since]):
            case = self._case(str(row["end_user"]), f"record {row['request_id']}")
            case.records.append(row)
            by_id[row["request_id"]] = case
        for row in house.query("SELECT * FROM ledger_adjustment WHERE started_at >= %s", [since]):
            by_id[row["request_id"]].adjustments.append(row)
        for row in house.query("SELECT * FROM ledger_attempt WHERE request_id = ANY(%s) ORDER BY number", [[*by_id]]):
            by_id[row["request_id"]].attempts.append(row)

    def _case(self, marker: str, what: str) -> Case:
        if marker not in self.cases:
            self.strangers.append(what)
            return Case(Sent(-1, "", False, False, Goodbye()))
        return self.cases[marker]

    def faults(self) -> list[str]:
        found = [f"nobody sent this: {stranger}" for stranger in self.strangers]
        for case in self.cases.values():
            found += [f"{fault}\n    {case.describe()}" for fault in _faults(case)]
            if case.sent.reply.status and case.sent.reply.status not in self.statuses:
                found.append(f"the client saw status {case.sent.reply.status}\n    {case.describe()}")
        holds = self.house.query("SELECT count(*) AS open FROM ledger_hold")[0]["open"]
        if holds:
            found.append(f"{holds} holds are left")
        letters = self.house.query("SELECT request_id, error FROM ledger_deadletter")
        return found + [f"a dead letter: {letter}" for letter in letters]

    def counts(self) -> dict[str, Any]:
        statuses = Counter(case.status for case in self.cases.values())
        kinds = Counter(str(row["kind"]) for case in self.cases.values() for row in case.adjustments)
        statuses["no record"] = statuses.pop("none", 0)
        return {
            "requests": len(self.cases),
            "seen by the provider": sum(len(case.served) for case in self.cases.values()),
            "tried more than once": sum(len(case.attempts) > 1 for case in self.cases.values()),
            "whole at the client": sum(case.sent.reply.whole for case in self.cases.values()),
            "clients that hung up": sum(case.sent.reply.end == "left" for case in self.cases.values()),
            "connections cut on clients": sum(case.sent.reply.end == "cut" for case in self.cases.values()),
            "streams cut by the provider": sum(
                s.outcome == "cut" for case in self.cases.values() for s in case.served
            ),
            "answers": dict(sorted(Counter(case.sent.reply.status for case in self.cases.values()).items())),
            **Counter(f"refused: {kind_of_refusal(case.sent.reply)}" for case in self.cases.values() if case.limited),
            **{f"records {status}": count for status, count in sorted(statuses.items())},
            "adjustments": dict(kinds),
        }

    def look_at_processes(self, processes: Iterable[Process], silences: Sequence[Span]) -> None:
        """Whose process died under it? Only those may be unknown."""
        by_pid = {process.pid: process for process in processes}
        soon = max([SOON_SECONDS, *(2 * process.start_seconds for process in by_pid.values())])
        pids = {row["id"]: row["pid"] for row in self.house.query("SELECT id, pid FROM ledger_process")}
        clock = time.time() - time.monotonic()
        for case in self.cases.values():
            if case.status == "unknown":
                process = by_pid[pids[case.records[0]["process_id"]]]
                swept_at = case.records[0]["ended_at"].timestamp() - clock
                case.left_behind = _left_behind(case, process, swept_at, silences, soon)


def _faults(case: Case) -> Iterator[str]:
    least, most = case.calls
    if not least <= len(case.served) <= most:
        yield f"the provider saw it {len(case.served)} times, by the ledger it did {least} to {most} times"
    if len(case.records) > 1:
        yield "it is in the ledger more than once"
    if case.served and not case.records:
        yield "the provider saw it, and it is not in the ledger"
    if len(case.adjustments) > 1 or (case.adjustments and case.status != "unknown"):
        yield "adjusted for no reason"
    if case.limited:
        if case.records:
            yield "refused, and in the ledger"
        yield from faults_of_refusal(case.sent.reply)
    if case.left_behind:
        yield case.left_behind
    yield from _faults_of_reply(case)
    yield from _faults_of_attempts(case)
    if case.records:
        yield from _faults_of_record(case)


def _faults_of_reply(case: Case) -> Iterator[str]:
    reply = case.sent.reply
    if reply.status == 503 and not reply.headers.get("retry-after"):
        yield "a 503 without retry-after"
    if reply.status not in (0, 200) and reply.end == "whole" and b'"error":{"message":' not in reply.body:
        yield "an error without OpenAI's envelope"
    if reply.status == 200 and reply.streamed and reply.end == "whole" and not reply.whole:
        yield "a stream without [DONE] ended as if it were whole"
    if reply.streamed and reply.whole:
        if reply.body.count(b"data: [DONE]") > 1 or not reply.body.endswith(b"data: [DONE]\n\n"):
            yield "[DONE] is not the one end of the stream"
        if b'data: {"error"' in reply.body:
            yield "an error event in a stream that ended as if it were whole"
    if reply.headers.get("x-request-id") and case.records:
        shown = reply.headers["x-request-id"].removeprefix("req_")
        if shown != case.records[0]["request_id"].hex:
            yield f"the client was told another id: {shown}"
    if reply.whole:
        if case.status != "completed" and not (case.status == "unknown" and case.adjustments):
            yield f"the client has it whole, and the ledger says {case.status}"
        if not case.served:
            yield "the client has an answer that nobody gave"


def _faults_of_attempts(case: Case) -> Iterator[str]:
    """Numbered from 1; the answer of one of them at most is what the client got, and that is the last."""
    if [row["number"] for row in case.attempts] != list(range(1, len(case.attempts) + 1)):
        yield "its attempts are not numbered from 1"
    if any(row["served"] for row in case.attempts[:-1]):
        yield "more than its last attempt is said to have served it"
    if any(row["outcome"] == "ok" or row["first_byte_at"] for row in case.attempts[:-1]):
        yield "tried again after the first byte"
    if case.attempts and case.status == "completed" and case.attempts[-1]["outcome"] != "ok":
        yield "completed, though its last attempt failed"
    if case.status == "failed" and any(row["cost"] for row in case.attempts):
        yield "failed, and yet an attempt cost something"


def _faults_of_record(case: Case) -> Iterator[str]:
    record, served = case.records[0], case.served[-1] if case.served else None
    settled = case.status == "completed" or (case.adjustments and case.sent.reply.whole)
    if settled and served is None:
        yield "completed without a provider"
    elif settled and served is not None and served.usage is not None:
        expected = (served.usage["prompt_tokens"], served.usage["completion_tokens"])
        if case.tokens != expected:
            yield f"the provider's usage is {expected}"
    elif case.status == "completed" and not record["estimated"]:
        yield "no usage was reported, and the record does not say that it is estimated"
    priced = case.tokens[0] * INPUT_PRICE + case.tokens[1] * OUTPUT_PRICE
    if case.status in ("completed", "interrupted") or case.adjustments:
        if case.booked("charge") != priced:
            yield f"charged {case.booked('charge')} instead of {priced}"
    elif case.booked("charge"):
        yield f"charged {case.booked('charge')} for a request that {case.status}"
    if case.status == "failed" and any(record[name] for name in CLASSES):
        yield "failed, and yet there are tokens"
    if case.status == "interrupted":
        delivered = DELIVERED.search(case.sent.reply.body)
        # Whoever left while the next attempt was waited for has cost nothing.
        asked = not case.attempts or case.attempts[-1]["outcome"] in (
            "ok",
            "cut",
            "client_left",
            "server_stopped",
            "timeout",
        )
        if (asked and not record["input_tokens"]) or (delivered and not record["output_tokens"]):
            yield "interrupted, and what was delivered is not there"


def _left_behind(case: Case, process: Process, swept_at: float, silences: Sequence[Span], soon: float) -> str:
    """A request that ended for its client while its process lived on is settled soon, if anything can be written."""
    if not process.ended_at or swept_at < process.ended_at:
        frozen = any(start < swept_at < end + soon for start, end in process.silences)
        return "" if frozen else f"swept, while server {process.number} was alive"
    if case.adjustments:
        return "settled after its process was killed"
    silent = sum(
        max(0.0, min(end, process.ended_at) - max(start, case.sent.ended_at))
        for start, end in [*silences, *process.silences]
    )
    seconds = process.ended_at - case.sent.ended_at - silent
    if process.end != "killed" or seconds > soon:
        return f"unknown, though it had ended {seconds:.1f} s before server {process.number} was {process.end}"
    return ""
