"""A server process as the desk's SQL sees it: a session of its own, with a number for rows of its own.

Its rows are spread by hand (`shard`), where ledger.heat would wait for them to be busy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import orjson
import psycopg
import pytest
from django.db import connection

from gateway.identifiers import uuid7
from gateway.ledger.items import Item, Order
from gateway.limits.claims import Claim

LOCK_TIMEOUT_MS = 30_000  # longer than the database takes to find a deadlock, and a busy machine to end a batch


class Process:
    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.id = str(uuid4())
        names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
        facts = {name: connection.settings_dict[key] or None for key, name in names.items()}
        self.session = psycopg.connect(**facts, autocommit=True)
        self.run(f"SET lock_timeout = {LOCK_TIMEOUT_MS}; SET timezone = 'UTC'")

    def run(self, statement: str, *values: Any) -> list[Any]:
        cursor = self.session.execute(statement, values)
        return cursor.fetchall() if cursor.description else []

    def call(self, *items: Item, skip: bool = False, retry: bool = False) -> list[list[Any]]:
        """The items' answers, in their order."""
        row = self.run("SELECT ledger_desk(%s, %s::json, %s, %s)", self.id, orjson.dumps(items).decode(), skip, retry)
        answers = {answer[0]: answer for answer in row[0][0] or []}
        return [answers[item["request_id"]] for item in items]

    def decide(self, *items: Item) -> list[list[Any]]:
        """As the writer does: what has to come again comes with the next batch."""
        answers = self.call(*items)
        again = [n for n, answer in enumerate(answers) if answer[1] == "again"]
        if again:
            whole = self.call(*(items[n] | {"whole": True} for n in again))
            for n, answer in zip(again, whole, strict=True):
                answers[n] = answer
        return answers

    def admission(self, order: Order, *claims: Claim, shard: int | None = None) -> Item:
        """A new request of this order."""
        row = self.shard if shard is None else shard
        mine = replace(order, request_id=uuid7())
        item = mine.admission(row)
        return item | {"claims": [[*claim, row] for claim in claims]}

    @contextmanager
    def open(self) -> Iterator[None]:
        """What it does in here is not committed before the end."""
        with self.session.transaction():
            yield


def settlement(item: Item, answer: Sequence[Any], *, tokens: int = 0, charge: int = 0) -> Item:
    """Of an admitted item: what was really used."""
    units = dict.fromkeys(("cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"), 0)
    ending = {"op": "s", "started_at": answer[2], "local_date": answer[3], "status": "completed", "http_status": 200}
    facts = {"input_tokens": tokens, "charge": charge, "cost": 0, "estimated": False, "error_code": "", "lines": []}
    return {key: value for key, value in item.items() if key not in ("claims", "whole")} | units | ending | facts


def release(item: Item) -> Item:
    return item | {"op": "r"}


@pytest.fixture
def process(transactional_db: None) -> Iterator[Callable[[int], Process]]:
    started: list[Process] = []

    def start(shard: int) -> Process:
        started.append(Process(shard))
        return started[-1]

    yield start
    for one in started:
        one.session.close()
