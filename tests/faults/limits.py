"""The limits that the load runs into, and what must be true of them afterwards: by the ledger, to the nano-unit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from tests.faults.wire import Reply
from tests.house import House, Row

NANO = 10**9
# What acme has is wide: it is counted, and refuses nobody. What tight has is reached again and again, and the
# budget of its key `budget` runs out. (The plan's and the model's limits are counted beside them.)
WIDE = """
      - {metric: requests, per: minute, amount: 100000}
      - {metric: tokens, per: minute, amount: 100000000}
      - {metric: in_flight, amount: 500}
      - {metric: spend, per: fiscal_month, currency: USD, amount: "1000", hold: hard, fiscal_day: 5}
"""
TIGHT = """
      - {metric: requests, per: minute, amount: 800}
      - {metric: tokens, per: minute, amount: 24000, hold: hard}
      - {metric: in_flight, amount: 25}
"""
BUDGET = '{metric: spend, per: month, currency: USD, amount: "0.012", hold: hard}'
EXPECTED = '{metric: spend, per: month, currency: USD, amount: "5"}'
EVERYBODY = "[{metric: requests, per: minute, amount: 100000}, {metric: tokens, per: day, amount: 1000000000}]"
PLAN = """
plans:
  - slug: basic
    limits:
      - {metric: requests, per: day, amount: 1000000}
      - {metric: tokens, per: day, tokens: output, amount: 100000000, mode: observe}
"""

DRIFT = """
SELECT * FROM ledger_compare_limits((SELECT array_agg(id) FROM limits_limitcounter))
WHERE used <> true_used OR held <> true_held OR amounts IS NOT NULL
"""
HELD = "SELECT rule_id, held FROM limits_limitcounter WHERE held <> 0"
RULES = """
SELECT r.id, r.metric, r.per, r.tokens, r.hold, r.amount::bigint AS amount, r.tenant_id, r.key_id, k.name AS key
FROM limits_limitrule r LEFT JOIN tenants_apikey k ON k.id = r.key_id
WHERE r.mode = 'enforce' AND r.model_id IS NULL AND (r.tenant_id IS NOT NULL OR r.key_id IS NOT NULL)
"""
RECORDS = """
SELECT request_id, started_at, ended_at, charge, status, decided,
    input_tokens + cached_input_tokens + cache_write_tokens + output_tokens + reasoning_tokens AS tokens
FROM ledger_usagerecord WHERE {} = %s ORDER BY started_at
"""
Event = tuple[datetime, int, int]


def drift(house: House) -> list[str]:
    """In one snapshot, at any moment: each counter beside the ledger and the open holds."""
    return [f"drift: {row}" for row in house.query(DRIFT)]


class LimitAudit:
    """Of everything that is in the ledger."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.rules = house.query(RULES)
        self.run_out: list[str] = []

    def faults(self) -> list[str]:
        found = drift(self.house)
        found += [f"held is left: {row}" for row in self.house.query(HELD)]
        for rule in self.rules:
            column = "key_id" if rule["key_id"] else "tenant_id"
            records = self.house.query(RECORDS.format(column), [rule[column]])
            found += [f"{fault}\n    {rule}" for fault in self._faults(rule, records)]
        return found

    def _faults(self, rule: Row, records: list[Row]) -> Iterator[str]:
        amount = rule["amount"]
        yield from _decided_within(rule, records)
        if rule["metric"] == "requests" and rule["per"] == "minute":
            if (most := most_within(records, lambda _: 1)) > amount:
                yield f"{most} requests within a minute"
        elif rule["metric"] == "tokens" and rule["hold"] == "hard":
            if (most := most_within(records, lambda row: int(row["tokens"]))) > amount:
                yield f"{most} tokens within a minute"
        elif rule["metric"] == "in_flight":
            if (most := most_at_once(records)) > amount:
                yield f"{most} in flight at once"
        elif rule["metric"] == "spend" and rule["hold"] == "hard":
            yield from self._faults_of_budget(rule, records)

    def _faults_of_budget(self, rule: Row, records: list[Row]) -> Iterator[str]:
        """What a frozen server settles after the sweep was charged to nobody then: it comes on top."""
        spent = sum(int(row["charge"] or 0) for row in records)
        if spent > rule["amount"]:
            yield f"{spent} were charged"
        refused = self.house.query("SELECT count(*) AS n FROM limits_refusal WHERE rule_id = %s", [rule["id"]])
        if refused[0]["n"]:
            self.run_out.append(str(rule["key"]))
            asked = max(int(row[8]) for record in records for row in record["decided"] if row[0] == rule["id"])
            if rule["amount"] - spent > 10 * asked:  # what its clients may hold at once
                yield f"only {spent} were charged, though the next {asked} were refused"


def _decided_within(rule: Row, records: list[Row]) -> Iterator[str]:
    """Every admission, by what it was decided on: [rule, ..., amount, ask, used, held]."""
    for record in records:
        for row in record["decided"]:
            if row[0] == rule["id"] and row[8] + row[9] + row[10] > row[7]:
                yield f"{record['request_id']} was admitted on {row}"


def most_within(records: Sequence[Row], amount: Callable[[Row], int], seconds: float = 60) -> int:
    """The most that any so many seconds hold, wherever they begin; records in the order of their start."""
    span, first, total, most = timedelta(seconds=seconds), 0, 0, 0
    for record in records:
        total += amount(record)
        while records[first]["started_at"] <= record["started_at"] - span:
            total -= amount(records[first])
            first += 1
        most = max(most, total)
    return most


def most_at_once(records: Iterable[Row]) -> int:
    events: list[Event] = []
    for record in records:
        events += [(record["started_at"], 1, 1), (record["ended_at"], 0, -1)]
    total = most = 0
    for _, _, change in sorted(events):
        total += change
        most = max(most, total)
    return most


def kind_of_refusal(reply: Reply) -> str:
    error: dict[str, Any] = json.loads(reply.body)["error"]
    return f"{error['type']}, {error['code']}"


def faults_of_refusal(reply: Reply) -> Iterator[str]:
    """A 429 of ours, as OpenAI's clients want it."""
    error, headers = json.loads(reply.body)["error"], reply.headers
    if set(error) != {"message", "type", "param", "code"}:
        yield f"not OpenAI's error: {error}"
    if error["code"] == "insufficient_quota":
        if error["type"] != "insufficient_quota" or headers.get("x-should-retry") != "false":
            yield "a client would ask again for what money refuses"
    elif error["code"] != "rate_limit_exceeded" or error["type"] not in ("requests", "tokens"):
        yield f"another kind of refusal: {error}"
    elif not 0 < int(headers.get("retry-after-ms", 0)) <= 1000 * int(headers.get("retry-after", 0)) <= 62_000:
        yield f"how long to wait: {headers}"
    elif "please try again in" not in error["message"].lower():
        yield f"another wording: {error['message']}"
