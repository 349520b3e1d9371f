"""What looks at the books must find what is wrong with them: each case here is right but for one thing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from tests.faults.audit import CLASSES, Case, _faults
from tests.faults.load import Sent
from tests.faults.rows import ROWS
from tests.faults.test_upstream_faults import faults_of_row, faults_of_text, model
from tests.faults.wire import Goodbye, Reply

WORDS = "".join(f'data: {{"choices":[{{"delta":{{"content":"w{n} "}}}}]}}\n\n' for n in range(9)).encode()
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"The provider failed."}}\n\n'
SSE = {"content-type": "text/event-stream"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 9}
ROW = next(row for row in ROWS if row.name == "cut in the middle")


def record(**changes: Any) -> dict[str, Any]:
    tokens = dict.fromkeys(CLASSES, 0) | {"input_tokens": 7, "output_tokens": 9}
    facts = {"request_id": UUID(int=1), "status": "completed", "charge": 25_000, "estimated": False}
    return {**tokens, **facts, **changes}


def attempt(number: int, outcome: str, **changes: Any) -> dict[str, Any]:
    facts = {"number": number, "outcome": outcome, "served": outcome == "ok", "first_byte_at": None, "cost": 0}
    return {**facts, "deployment_id": 1, **changes}


def served(times: int = 1, usage: dict[str, int] | None = USAGE) -> list[Any]:
    return [SimpleNamespace(status=200, outcome="whole", events=9, usage=usage) for _ in range(times)]


def case(body: bytes = WORDS + DONE, *, end: str = "whole", status: int = 200, **changes: Any) -> Case:
    sent = Sent(1, model(ROW, "pair"), True, True, Goodbye(), Reply(status, dict(SSE), body, end))
    facts: dict[str, Any] = {"served": served(), "records": [record()], **changes}
    return Case(sent, **facts)


def all_faults(found: Case) -> str:
    return "\n".join([*_faults(found), *faults_of_text(found.sent), *faults_of_row(ROW, found)])


def test_what_is_right_is_right() -> None:
    assert all_faults(case()) == ""
    broken = record(status="interrupted", output_tokens=3, charge=13_000)
    stopped = case(WORDS + ERROR, end="cut", records=[broken], attempts=[attempt(1, "cut")])
    assert all_faults(stopped) == ""
    again = case(served=served(2), attempts=[attempt(1, "status_500"), attempt(2, "ok")])
    assert not [*_faults(again)]


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (case(records=[]), "not in the ledger"),
        (case(records=[record(), record()]), "more than once"),
        (case(records=[record(status="failed", charge=0)]), "the ledger says failed"),
        (case(records=[record(status="unknown", charge=0)]), "the ledger says unknown"),
        (case(served=served(2)), "2 times, by the ledger it did 1 to 1"),
        (case(served=[]), "nobody gave"),
        (case(records=[record(charge=25_001)]), "charged 25001 instead of 25000"),
        (case(records=[record(output_tokens=8, charge=23_000)]), "the provider's usage is (7, 9)"),
        (case(served=served(usage=None)), "does not say that it is estimated"),
        (case(WORDS), "ended as if it were whole"),
        (case(WORDS + DONE + DONE), "not the one end"),
        (case(ERROR + DONE), "an error event in a stream"),
        (case(WORDS, end="cut", records=[record(status="interrupted")]), "without an error event"),
        (case(WORDS.replace(b"w5", b"x5") + DONE), "the words of two providers"),
        (case(WORDS.replace(b"w5", b"w6") + DONE), "not the words that were said"),
        (case(attempts=[attempt(1, "ok"), attempt(2, "ok")], served=served(2)), "tried again after the first byte"),
        (case(attempts=[attempt(2, "ok")]), "not numbered from 1"),
        (
            case(b"", status=502, served=served(2), attempts=[attempt(1, "cut"), attempt(2, "cut")]),
            "asked again, though an answer had begun",
        ),
        (case(b"{}", status=502), "without OpenAI's envelope"),
        (case(b"{}", status=503), "a 503 without retry-after"),
        (case(records=[record(status="failed")]), "charged 25000 for a request that failed"),
    ],
)
def test_it_finds(found: Case, fault: str) -> None:
    assert fault in all_faults(found)
