"""Who answers under an Idempotency-Key, and what was answered: each verb one short statement or two.

A claim is a row that was inserted; the database's clock decides on time. One whose process died is taken over: when
the process is known to have ended, or when two looks some seconds apart saw no heartbeat (one is not enough: after an
outage of the database every heartbeat is old). Never if its request was charged, which happens when a process dies
between the usage record and the keeping of the answer: it would be charged twice.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from uuid import UUID

import orjson
from django.conf import settings
from django.db import connection
from django.db.models import QuerySet

from gateway.ledger.sweeper import LEASE_SECONDS
from gateway.replies.models import KeptReply, Unreadable, opened, sealed

log = logging.getLogger(__name__)

State = KeptReply.State
# A heartbeat comes every 5 s: a process that sent none between two looks so far apart is dead.
SECOND_LOOK_SECONDS = 6
# A tenant's oldest go so often while it fills its bound once: it is passed by a hundredth until housekeeping comes.
TRIMMED_PER_BOUND = 100

_DEAD = f"""(
    EXISTS (SELECT FROM ledger_process p WHERE p.id = k.process_id AND p.ended_at IS NOT NULL)
    OR (k.suspected_at < now() - interval '{SECOND_LOOK_SECONDS} s' AND NOT EXISTS (
        SELECT FROM ledger_process p WHERE p.id = k.process_id AND p.heartbeat_at >= k.suspected_at)))"""
_CHARGED = "EXISTS (SELECT FROM ledger_usagerecord r WHERE r.request_id = k.request_id AND r.status = 'completed')"
# Not flushed by itself: the hold of the request is, afterwards and in the same log. So a repeat waits for no disk.
_TAKE = f"""
INSERT INTO replies_keptreply AS k (tenant_id, key_digest, body_digest, request_id, process_id, state, stream,
    headers, content, size, created_at, expires_at)
SELECT %(tenant)s, %(key)s, %(body)s, %(request)s, %(process)s, 'running', %(stream)s,
    '{{}}'::jsonb, ''::bytea, 0, now(), now() + make_interval(hours => %(hours)s)
FROM (SELECT set_config('synchronous_commit', 'off', true)) AS unflushed
ON CONFLICT (tenant_id, key_digest) DO UPDATE SET body_digest = EXCLUDED.body_digest, state = 'running',
    request_id = EXCLUDED.request_id, process_id = EXCLUDED.process_id, suspected_at = NULL, stream = EXCLUDED.stream,
    headers = '{{}}', content = '', size = 0, created_at = now(), expires_at = EXCLUDED.expires_at
WHERE k.expires_at <= now()
    OR (k.state = 'running' AND k.body_digest = EXCLUDED.body_digest AND {_DEAD} AND NOT {_CHARGED})
RETURNING k.id
"""
# Only then a second look means something.
_SUSPECT = f"""
UPDATE replies_keptreply k SET suspected_at = now()
WHERE k.id = %(id)s AND k.state = 'running'
    AND NOT EXISTS (SELECT FROM ledger_process p WHERE p.id = k.process_id
        AND p.heartbeat_at >= now() - interval '{LEASE_SECONDS} s')
    AND (k.suspected_at IS NULL OR EXISTS (SELECT FROM ledger_process p WHERE p.id = k.process_id
        AND p.heartbeat_at >= k.suspected_at))
"""
_LOST = f"SELECT {_DEAD} AND {_CHARGED} FROM replies_keptreply k WHERE k.id = %(id)s"
_KEEP = """
UPDATE replies_keptreply SET state = 'kept', content = %(content)s, size = %(size)s, headers = %(headers)s,
    expires_at = now() + make_interval(hours => %(hours)s)
WHERE id = %(id)s AND request_id = %(request)s AND state = 'running'
"""
_TRIM = """
DELETE FROM replies_keptreply WHERE id IN (
    SELECT id FROM replies_keptreply WHERE tenant_id = %(tenant)s AND state <> 'running'
    ORDER BY created_at DESC, id DESC OFFSET %(most)s LIMIT 1000)
"""


class Finding(Enum):
    OURS = "ours"
    KEPT = "kept"
    RUNNING = "running"
    OTHER_BODY = "other body"
    TOO_LARGE = "too large"
    LOST = "lost"  # charged, but its process died before it was kept, or it could not be, or nothing opens it now


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with an Idempotency-Key, as the database knows it. key and body are digests."""

    tenant_id: int
    key: bytes
    body: bytes
    request_id: UUID
    process_id: UUID
    stream: bool


@dataclass(frozen=True, slots=True)
class Found:
    finding: Finding
    id: int = 0
    # Of a kept answer:
    request_id: UUID | None = None
    headers: dict[str, str] = field(default_factory=dict)
    answer: bytes = b""


def take(asked: Asked) -> Found:
    """Claim the key, or say what there is."""
    facts: dict[str, Any] = {
        "tenant": asked.tenant_id,
        "key": asked.key,
        "body": asked.body,
        "request": asked.request_id,
        "process": asked.process_id,
        "stream": asked.stream,
        "hours": settings.IDEMPOTENCY_HOURS,
    }
    while True:
        with connection.cursor() as cursor:
            cursor.execute(_TAKE, facts)
            inserted = cursor.fetchone()
        if inserted is not None:
            return Found(Finding.OURS, inserted[0])
        row = KeptReply.objects.filter(tenant_id=asked.tenant_id, key_digest=asked.key).first()
        if row is not None:  # else it was given up in between
            return _look(row, asked)


def _look(row: KeptReply, asked: Asked) -> Found:
    if bytes(row.body_digest) != asked.body:
        return Found(Finding.OTHER_BODY)
    if row.state == State.TOO_LARGE:
        return Found(Finding.TOO_LARGE)
    if row.state == State.RUNNING:
        return Found(Finding.LOST if _suspect(row.pk) else Finding.RUNNING)
    try:
        answer = opened(bytes(row.content), asked.key)
    except Unreadable as exc:
        log.error("The kept answer to request %s cannot be read: %s", row.request_id, exc)
        return Found(Finding.LOST)
    return Found(Finding.KEPT, row.pk, row.request_id, row.headers, answer)


def _suspect(row_id: int) -> bool:
    """Look whether its process lives; True if it is dead and was charged."""
    with connection.cursor() as cursor:
        cursor.execute(_SUSPECT, {"id": row_id})
        cursor.execute(_LOST, {"id": row_id})
        found = cursor.fetchone()
    return bool(found and found[0])


def keep(claim_id: int, asked: Asked, answer: bytes, headers: dict[str, str]) -> bool:
    """Store the answer of our claim. False if it is ours no longer: expired, deleted or taken over."""
    facts: dict[str, Any] = {
        "id": claim_id,
        "request": asked.request_id,
        "content": sealed(answer, asked.key),
        "size": len(answer),
        "headers": orjson.dumps(headers).decode(),
        "hours": settings.IDEMPOTENCY_HOURS,
    }
    with connection.cursor() as cursor:
        cursor.execute(_KEEP, facts)
        kept: bool = cursor.rowcount == 1
    most: int = settings.IDEMPOTENCY_MAX_KEPT
    if kept and random.randrange(max(1, most // TRIMMED_PER_BOUND)) == 0:
        trim(asked.tenant_id)
    return kept


def trim(tenant_id: int) -> int:
    """Delete the oldest beyond the tenant's bound; returns how many, of at most a thousand."""
    with connection.cursor() as cursor:
        cursor.execute(_TRIM, {"tenant": tenant_id, "most": settings.IDEMPOTENCY_MAX_KEPT})
        return int(cursor.rowcount)


def give_up_content(claim_id: int, asked: Asked) -> None:
    """The answer grew too large to be kept; that there was one still is."""
    _ours(claim_id, asked).filter(state=State.RUNNING).update(state=State.TOO_LARGE)


def lose(claim_id: int, asked: Asked) -> None:
    """There was an answer, which cannot be kept. What has no content is found to be lost."""
    _ours(claim_id, asked).filter(state=State.RUNNING).update(state=State.KEPT)


def release(claim_id: int, asked: Asked) -> None:
    """There is no answer: the next request with this key runs anew."""
    _ours(claim_id, asked).exclude(state=State.KEPT).delete()


def _ours(claim_id: int, asked: Asked) -> QuerySet[KeptReply]:
    return KeptReply.objects.filter(pk=claim_id, request_id=asked.request_id)
