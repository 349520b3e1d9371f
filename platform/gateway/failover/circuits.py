"""The breakers in the database: every change is one statement, which decides, writes and leaves a line of history.

So two processes that find out the same thing at once write it once, and only one of many gets a probe. All times
are the database's: what a process says or hears is in seconds from now. Raises django.db.Error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection

from gateway.failover.breaker import CLAIM_S, FIRST_OPEN_S, LONGEST_OPEN_S, Forced

# A deployment that an active probe closed, and that fails again so soon after, opens for longer than before:
# it lists its models, and cannot answer.
RELAPSE_S = 300
PROBE_FAILURES = 3  # of our own probes in a row open it
# How far a process's clock may be ahead of the database's when it finds an opening over.
TOLERANCE_S = 0.25

_LASTS = f"make_interval(secs => least({LONGEST_OPEN_S}, {FIRST_OPEN_S} * 2 ^ (least({{n}}, 16) - 1)))"
_EVENT = """
INSERT INTO failover_healthevent (deployment_id, at, before, after, reason, process, person)
SELECT deployment_id, {at}, '{before}', '{after}', {reason}, %(process)s, '' FROM changed
"""
_AT = "now() - make_interval(secs => %(age)s)"
_AGAIN = f"CASE WHEN c.since > now() - interval '{RELAPSE_S} s' THEN c.openings + 1 ELSE 1 END"
_FREE = "(c.probe_by IS NULL OR c.probe_until <= now() OR c.probe_by = %(token)s)"

_OPEN = f"""
WITH changed AS (
    INSERT INTO failover_circuit AS c (deployment_id, state, reason, openings, since, open_until)
    SELECT id, 'open', %(reason)s, 1, {_AT}, {_AT} + {_LASTS.format(n="1")}
    FROM catalogue_deployment WHERE id = %(deployment)s
    ON CONFLICT (deployment_id) DO UPDATE SET state = 'open', reason = excluded.reason, openings = {_AGAIN},
        since = excluded.since, open_until = excluded.since + {_LASTS.format(n=_AGAIN)},
        probe_by = NULL, probe_until = NULL, updated_at = now()
    WHERE c.state = 'closed' AND c.forced = ''
    RETURNING deployment_id
) {_EVENT.format(at=_AT, before="closed", after="open", reason="%(reason)s")}
"""
_REOPEN = f"""
WITH changed AS (
    UPDATE failover_circuit c SET openings = openings + 1, reason = %(reason)s, probe_by = NULL, probe_until = NULL,
        open_until = {_AT} + {_LASTS.format(n="openings + 1")}, updated_at = now()
    WHERE deployment_id = %(deployment)s AND state = 'open' AND forced = '' AND {_FREE}
    RETURNING deployment_id
) {_EVENT.format(at=_AT, before="half_open", after="open", reason="%(reason)s")}
"""
_CLOSE = f"""
WITH changed AS (
    UPDATE failover_circuit c SET state = 'closed', reason = '', openings = 0, since = {_AT}, open_until = NULL,
        probe_by = NULL, probe_until = NULL, updated_at = now()
    WHERE deployment_id = %(deployment)s AND state = 'open' AND forced = ''
    RETURNING deployment_id
) {_EVENT.format(at=_AT, before="half_open", after="closed", reason="%(reason)s")}
"""
# A line of history only for one that was called: of many who are told to wait at once the first is the news, and an
# open one stays open.
_REST = f"""
WITH away AS (
    SELECT FROM failover_circuit WHERE deployment_id = %(deployment)s AND (state = 'open' OR resting_until > now())
), changed AS (
    INSERT INTO failover_circuit AS c (deployment_id, resting_until)
    SELECT id, {_AT} + make_interval(secs => %(seconds)s) FROM catalogue_deployment WHERE id = %(deployment)s
    ON CONFLICT (deployment_id) DO UPDATE SET resting_until = excluded.resting_until, updated_at = now()
    WHERE c.forced = '' AND (c.resting_until IS NULL OR c.resting_until < excluded.resting_until)
    RETURNING deployment_id
) {_EVENT.format(at=_AT, before="closed", after="resting", reason="%(reason)s")}
WHERE %(told)s AND NOT EXISTS (SELECT FROM away)
"""
_CLAIM = f"""
UPDATE failover_circuit c SET probe_by = %(token)s, probe_until = now() + interval '{CLAIM_S} s', updated_at = now()
WHERE deployment_id = %(deployment)s AND state = 'open' AND forced = '' AND {_FREE}
  AND open_until <= now() + interval '{TOLERANCE_S} s'
"""
_RENEW = f"""
UPDATE failover_circuit SET probe_until = now() + interval '{CLAIM_S} s'
WHERE deployment_id = %(deployment)s AND probe_by = %(token)s
"""
_ABANDON = """
UPDATE failover_circuit SET probe_by = NULL, probe_until = NULL, updated_at = now()
WHERE deployment_id = %(deployment)s AND probe_by = %(token)s
"""
_TROUBLED = """
SELECT c.deployment_id, c.state = 'open', c.openings, c.reason, c.forced, c.probe_by,
    coalesce(extract(epoch FROM c.open_until - now()), 0)::float8,
    coalesce(extract(epoch FROM c.probe_until - now()), 0)::float8,
    coalesce(extract(epoch FROM c.resting_until - now()), 0)::float8
FROM failover_circuit c WHERE c.state <> 'closed' OR c.forced <> '' OR c.resting_until > now()
"""
_COUNT = """
INSERT INTO failover_recentresults (deployment_id, process, good, bad, at)
SELECT id, %(token)s, good, bad, now()
FROM unnest(%(ids)s::bigint[], %(good)s::int[], %(bad)s::int[]) AS t (id, good, bad)
ON CONFLICT (deployment_id, process) DO UPDATE SET good = excluded.good, bad = excluded.bad, at = excluded.at
"""


class Author(NamedTuple):
    """The process that writes."""

    token: UUID
    name: str  # for people


class Trouble(NamedTuple):
    """A deployment with which something is wrong, as the database knows it. Seconds are from now."""

    deployment_id: int
    open: bool
    openings: int
    reason: str
    forced: Forced
    probe_by: UUID | None
    open_s: float
    probe_s: float
    rest_s: float


def open_it(author: Author, deployment_id: int, *, reason: str, age: float = 0.0) -> bool:
    """It failed too often, `age` seconds ago. False: it was open already, or is a person's business."""
    return _run(_OPEN, author, deployment_id, reason=reason[:200], age=age)


def reopen(author: Author, deployment_id: int, *, reason: str, age: float = 0.0) -> bool:
    """The probe failed. False: somebody else's is under way, or it is closed."""
    return _run(_REOPEN, author, deployment_id, reason=reason[:200], age=age)


def close(author: Author, deployment_id: int, *, reason: str, age: float = 0.0) -> bool:
    """The probe was good."""
    return _run(_CLOSE, author, deployment_id, reason=reason[:200], age=age)


def rest(author: Author, deployment_id: int, *, seconds: float, told: bool, age: float = 0.0) -> bool:
    """Left alone for so long. Only what is `told` is in the history: short ones come by the dozen. Whether it is."""
    reason = f"the provider asked for {seconds:.0f} s"
    return _run(_REST, author, deployment_id, seconds=seconds, told=told, reason=reason, age=age)


def claim(author: Author, deployment_id: int) -> bool:
    """True for one process alone, until it tells how the probe went, or CLAIM_S have passed."""
    return _run(_CLAIM, author, deployment_id)


def renew(author: Author, deployment_id: int) -> bool:
    """The probe still runs."""
    return _run(_RENEW, author, deployment_id)


def abandon(author: Author, deployment_id: int) -> bool:
    """The probe ended without an outcome: the next may be made at once."""
    return _run(_ABANDON, author, deployment_id)


def count(author: Author, counts: Iterable[tuple[int, int, int]]) -> None:
    """What this process counted lately: (deployment, good, bad)."""
    rows = list(counts)
    ids, good, bad = ([row[n] for row in rows] for n in range(3))
    with connection.cursor() as cursor:
        cursor.execute(_COUNT, {"token": author.token, "ids": ids, "good": good, "bad": bad})


def troubled() -> list[Trouble]:
    """All with which something is wrong; mostly none."""
    with connection.cursor() as cursor:
        cursor.execute(_TROUBLED)
        return [Trouble(row[0], row[1], row[2], row[3], Forced(row[4]), *row[5:]) for row in cursor.fetchall()]


def _run(statement: str, author: Author, deployment_id: int, **facts: object) -> bool:
    known: dict[str, Any] = {"token": author.token, "process": author.name, "deployment": deployment_id}
    known.update(facts)
    with connection.cursor() as cursor:
        cursor.execute(statement, known)
        return bool(cursor.rowcount)


# ---- active probes ----

_DUE = """
INSERT INTO failover_circuit AS c (deployment_id, probed_at)
SELECT d.id, now() FROM catalogue_deployment d JOIN catalogue_provider p ON p.id = d.provider_id
    JOIN catalogue_model m ON m.id = d.model_id
WHERE d.enabled AND p.enabled AND m.enabled AND d.probe_every_s IS NOT NULL AND NOT p.protocol = ANY(%s)
ON CONFLICT (deployment_id) DO UPDATE SET probed_at = excluded.probed_at
WHERE c.probed_at IS NULL OR now() + interval '1 s' >= c.probed_at + make_interval(
    secs => (SELECT probe_every_s FROM catalogue_deployment WHERE id = c.deployment_id))
RETURNING deployment_id
"""
_PROBED = """
UPDATE failover_circuit SET probe_outcome = %(outcome)s, updated_at = now(),
    probe_failures = CASE %(good)s WHEN 'yes' THEN 0 WHEN 'no' THEN probe_failures + 1 ELSE probe_failures END
WHERE deployment_id = %(deployment)s RETURNING probe_failures
"""
# The number of openings stays: a deployment that lists its models may still be unable to answer.
_CLOSE_AS_PROBED = f"""
WITH changed AS (
    UPDATE failover_circuit c SET state = 'closed', reason = '', since = now(), open_until = NULL, updated_at = now()
    WHERE deployment_id = %(deployment)s AND state = 'open' AND forced = '' AND open_until <= now() AND {_FREE}
    RETURNING deployment_id
) {_EVENT.format(at="now()", before="half_open", after="closed", reason="%(reason)s")}
"""
_REOPEN_AS_PROBED = _REOPEN.replace("state = 'open'", "state = 'open' AND open_until <= now()")


def due(*, never: list[str]) -> list[int]:
    """The deployments whose probe is due, each handed out once; without those of the protocols in `never`."""
    with connection.cursor() as cursor:
        cursor.execute(_DUE, [never])
        return [row[0] for row in cursor.fetchall()]


def probed(author: Author, deployment_id: int, *, good: bool | None, outcome: str) -> bool:
    """A probe of our own counts as a request's: whether it opened or closed something. None: it says nothing."""
    answer = {True: "yes", False: "no", None: ""}[good]
    facts: dict[str, Any] = {"good": answer, "outcome": outcome[:100], "deployment": deployment_id}
    with connection.cursor() as cursor:
        cursor.execute(_PROBED, facts)
        row = cursor.fetchone()
    if row is None or good is None:
        return False
    if good:
        return _run(_CLOSE_AS_PROBED, author, deployment_id, reason="a probe of ours was good")
    failed = "a probe of ours failed" if row[0] == 1 else f"{row[0]} probes of ours failed in a row"
    reason = f"{failed}: {outcome}"
    if row[0] >= PROBE_FAILURES and open_it(author, deployment_id, reason=reason):
        return True
    return _run(_REOPEN_AS_PROBED, author, deployment_id, reason=reason[:200], age=0.0)
