"""The log's lines: what is in them, and what never is."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime, timedelta
from io import StringIO
from uuid import UUID

import pytest

from gateway import logs
from gateway.identifiers import uuid7
from gateway.logs import JsonFormatter, RequestLog


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    written: list[dict[str, object]] = []
    monkeypatch.setattr(logs, "emit", lambda line: written.append(json.loads(json.dumps(line))))
    return written


def formatted(record: logging.LogRecord) -> dict[str, object]:
    line: dict[str, object] = json.loads(JsonFormatter().format(record))
    return line


def test_it_says_what_is_known(lines: list[dict[str, object]]) -> None:
    log = RequestLog("POST", "/v1/chat/completions")
    log.tenant, log.key, log.model = "acme", "pk1", "acme-chat"
    log.input_tokens, log.output_tokens = 0, 5
    log.write(200)
    (line,) = lines
    assert (
        line
        | {
            "event": "request",
            "level": "info",
            "status": 200,
            "tenant": "acme",
            "key": "pk1",
            "model": "acme-chat",
            "input_tokens": 0,
            "output_tokens": 5,
            "request_id": "req_" + log.request_id.hex,
        }
        == line
    )
    assert "client_request_id" not in line


@pytest.mark.parametrize(("status", "level"), [(200, "info"), (404, "info"), (499, "info"), (500, "error")])
def test_its_level_follows_the_status(lines: list[dict[str, object]], status: int, level: str) -> None:
    RequestLog("GET", "/").write(status)
    assert lines[0]["level"] == level


def test_it_survives_what_clients_send(lines: list[dict[str, object]]) -> None:
    RequestLog("GET", "/" + "x" * 5000 + '"\n').write(400)
    assert len(str(lines[0]["path"])) == logs.LONGEST_PATH


def test_it_survives_a_log_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "STDERR", -1)
    RequestLog("GET", "/").write(200)


def test_its_time_is_that_of_each_line(monkeypatch: pytest.MonkeyPatch) -> None:
    noon = datetime(2026, 11, 23, 11, 59, 59, tzinfo=UTC)
    for milliseconds in (0, 7, 999, 1_000, 1_007, 61_000, 1_006):
        at = noon + timedelta(milliseconds=milliseconds)
        monkeypatch.setattr(time, "time_ns", lambda at=at: round(at.timestamp() * 1000) * 1_000_000)
        assert logs.now() == at.isoformat(timespec="milliseconds")


def test_other_records_are_json_too() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.getLogger("x").makeRecord(
            "x", logging.ERROR, "f", 1, "it %s", ("broke",), sys.exc_info(), extra={"tenant": "acme"}
        )
    line = formatted(record)
    assert line | {"level": "error", "event": "it broke", "logger": "x", "tenant": "acme"} == line
    assert "ValueError: no" in str(line["traceback"])


def test_requests_and_bodies_are_left_out() -> None:
    record = logging.getLogger("x").makeRecord(
        "x", logging.INFO, "f", 1, "x", (), None, extra={"request": "Bearer hunter2", "data": "hunter2"}
    )
    assert "hunter2" not in json.dumps(formatted(record))


def test_configuring_twice_writes_once(capsys: pytest.CaptureFixture[str]) -> None:
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        logs.configure()
        logs.configure()
        (handler,) = (h for h in logging.root.handlers if isinstance(h.formatter, JsonFormatter))
        stream = StringIO()
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(stream)
        logging.getLogger("gateway.test").info("hello")
        assert len(stream.getvalue().splitlines()) == 1
    finally:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)


def test_ids_sort_by_time_and_are_version_7() -> None:
    ids = [uuid7() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {made.version for made in ids} == {7}
    assert {made.variant for made in ids} == {UUID(int=ids[0].int).variant}
    assert ids[0].int >> 80 <= ids[-1].int >> 80
