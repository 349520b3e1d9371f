"""Counters are caches of the ledger (accounting.md 9): compared with it again and again, repaired, and told of.

In rounds, and each run does a part of one: short statements beside the desk, never a long one. A counter whose window
is too large to be read in `STATEMENT_MS` is skipped and counted as such: `verify_ledger` compares it, with patience.
How a repair can do without holding anybody up: migrations/0008_drift.sql.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import OperationalError, connection, transaction
from django.utils import timezone
from psycopg.errors import LockNotAvailable, QueryCanceled

from gateway.ledger.comparison import COMPARE, NAMES, LimitState, compare_limits, watched_counters
from gateway.ledger.models import DriftCheck, DriftFinding
from tenants.models import Tenant

log = logging.getLogger(__name__)

RUN_SECONDS = 20.0
STATEMENT_MS = 3000
CHUNK = 50  # counters in one statement
LIMITS, TOTALS = "limits", "totals"

_ADD = """
INSERT INTO ledger_counter AS c (scope, owner_id, currency, requests, tokens, charge, held_requests, held)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (scope, owner_id, currency, shard) DO UPDATE SET requests = c.requests + EXCLUDED.requests,
    tokens = c.tokens + EXCLUDED.tokens, charge = c.charge + EXCLUDED.charge,
    held_requests = c.held_requests + EXCLUDED.held_requests, held = c.held + EXCLUDED.held
"""


def check(*, seconds: float = RUN_SECONDS) -> None:
    """Go on with both rounds, for at most so long. Does nothing if another run is at it."""
    with _alone() as mine:
        if mine:
            until = time.monotonic() + seconds
            _go_on(LIMITS, until)
            _go_on(TOTALS, until)


def _go_on(name: str, until: float) -> None:
    state, _ = DriftCheck.objects.get_or_create(name=name)
    while time.monotonic() < until:
        ids = watched_counters(state.position, CHUNK) if name == LIMITS else _tenants(state.position)
        if not ids:
            state.last_compared, state.last_skipped, state.last_found = state.compared, state.skipped, state.found
            state.checked_at = timezone.now()
            state.position = state.compared = state.skipped = state.found = 0
            state.save()
            return
        _look(state, ids)
        state.position = ids[-1]
        state.save()


def _look(state: DriftCheck, ids: list[int]) -> None:
    """All of them in one statement; one by one if that takes too long."""
    look = _look_at_limits if state.name == LIMITS else _look_at_totals
    try:
        with _patience():
            compared, found = look(ids)
    except OperationalError as exc:
        if not isinstance(exc.__cause__, QueryCanceled | LockNotAvailable):
            raise
        if len(ids) == 1:
            state.skipped += 1
            return
        for one in ids:
            _look(state, [one])
        return
    state.compared += compared
    state.found += found


def _look_at_limits(ids: list[int]) -> tuple[int, int]:
    states = compare_limits(ids)
    found = 0
    for state in states:
        if any(state.differences()):
            found += _repair_limit(state.counter)
    return len(states), found


def _repair_limit(counter: int) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM ledger_repair_limit(%s)", [counter])
        states = [LimitState(*row) for row in cursor.fetchall()]
    findings = [
        DriftFinding(
            at=timezone.now(),
            scope="limit",
            owner_id=state.owner,
            rule_id=state.rule,
            window_start=state.starts,
            name=name,
            said=said,
            right=right,
            repaired=True,
        )
        for state in states
        for name, said, right in state.differences()
    ]
    return _keep(findings)


def _look_at_totals(ids: list[int]) -> tuple[int, int]:
    """Of one tenant and its keys."""
    compared, findings, changes = 0, list[DriftFinding](), list[list[Any]]()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('ledger_drift'))")
        cursor.execute(COMPARE, {"tenant": ids[0]})
        for scope, owner, currency, counter, truth in cursor.fetchall():
            compared += 1
            said, right = ([int(value or 0) for value in numbers or [0] * 5] for numbers in (counter, truth))
            if said == right:
                continue
            changes.append([scope, owner, currency, *(b - a for a, b in zip(said, right, strict=True))])
            findings += [
                DriftFinding(
                    at=timezone.now(),
                    scope=scope,
                    owner_id=owner,
                    currency=currency,
                    name=name,
                    said=a,
                    right=b,
                    repaired=True,
                )
                for name, a, b in zip(NAMES, said, right, strict=True)
                if a != b
            ]
        if changes:
            cursor.execute(
                "SELECT id FROM ledger_counter WHERE (scope, owner_id) IN ("
                "SELECT * FROM unnest(%s::varchar[], %s::bigint[])) ORDER BY id FOR UPDATE",
                [[change[0] for change in changes], [change[1] for change in changes]],
            )
            for change in changes:
                cursor.execute(_ADD, change)
    return compared, _keep(findings)


def _keep(findings: list[DriftFinding]) -> int:
    DriftFinding.objects.bulk_create(findings)
    for finding in findings:
        log.error("Drift, repaired: %s", finding)
    return len(findings)


def _tenants(after: int) -> list[int]:
    return list(Tenant.objects.filter(pk__gt=after).order_by("pk").values_list("pk", flat=True)[:1])


@contextmanager
def _patience() -> Iterator[None]:
    """One short transaction."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('statement_timeout', %s, true), set_config('lock_timeout', '1000', true)",
            [str(STATEMENT_MS)],
        )
        yield


@contextmanager
def _alone() -> Iterator[bool]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(hashtext('ledger_drift_run'))")
        (mine,) = cursor.fetchone()
        try:
            yield mine
        finally:
            if mine:
                cursor.execute("SELECT pg_advisory_unlock(hashtext('ledger_drift_run'))")
