"""Answers that are kept because their request had an `Idempotency-Key`: the one content that is stored.

Encrypted, for IDEMPOTENCY_HOURS, deleted on time (housekeeping). The key itself is not stored, nor the request: only
HMACs of them. A row is first a claim (`running`): whoever inserted it runs the request, everybody else waits.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from typing import Self

from cryptography.fernet import InvalidToken
from django.db import models

from gateway.catalogue.fields import cipher
from tenants.models import Tenant

QUICKEST = 1  # of zlib's levels: a stream repeats its head in every event, so the quickest finds nearly all
ROTATED_AT_ONCE = 100  # rows, of up to IDEMPOTENCY_MAX_BYTES each


class Unreadable(Exception):
    """A kept answer that none of ENCRYPTION_KEYS opens, or that is not the one that was stored here."""


class KeptReplyQuerySet(models.QuerySet["KeptReply"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)


class KeptReply(models.Model):
    """One Idempotency-Key of a tenant, and what was answered under it."""

    class State(models.TextChoices):
        RUNNING = "running", "being answered"
        KEPT = "kept", "kept"
        TOO_LARGE = "too_large", "too large to keep"

    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="+", db_constraint=False, db_index=False)
    key_digest = models.BinaryField(max_length=32, editable=False)
    body_digest = models.BinaryField(max_length=32, editable=False)
    request_id = models.UUIDField()  # of the request that was run: its usage record has it
    process_id = models.UUIDField()  # that runs it (ledger.Process)
    suspected_at = models.DateTimeField(null=True)  # its process was late then: see claims
    state = models.CharField(max_length=9, choices=State.choices, default=State.RUNNING)
    stream = models.BooleanField()
    headers = models.JSONField(default=dict)  # of ours, to be sent again
    content = models.BinaryField(default=b"", editable=False)  # a Fernet token of `sealed`
    size = models.PositiveIntegerField("bytes", default=0)  # of the answer
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()

    objects = KeptReplyQuerySet.as_manager()

    class Meta:
        verbose_name = "kept answer"
        ordering = ["-created_at", "-id"]
        constraints = [
            models.UniqueConstraint(fields=["tenant", "key_digest"], name="keptreply_key"),
            models.CheckConstraint(
                name="keptreply_state", condition=models.Q(state__in=["running", "kept", "too_large"])
            ),
        ]
        indexes = [
            models.Index(fields=["expires_at"], name="keptreply_expiry"),
            models.Index(fields=["tenant", "created_at"], name="keptreply_oldest"),
        ]

    def __str__(self) -> str:
        return f"answer to {self.request_id}"

    @classmethod
    def reencrypt(cls) -> int:
        """Encrypt all of them with the first of ENCRYPTION_KEYS, some at a time; returns how many."""
        total, last = 0, 0
        while rows := list(cls.objects.filter(pk__gt=last, state=cls.State.KEPT).order_by("pk")[:ROTATED_AT_ONCE]):
            for row in rows:
                token = bytes(row.content)
                with suppress(InvalidToken):  # the key that it had is gone already; it expires
                    # Only if it is still that one: it may have expired, and its request been run again.
                    total += cls.objects.filter(pk=row.pk, content=token).update(content=cipher().rotate(token))
            last = rows[-1].pk
        return total


def sealed(answer: bytes, owner: bytes) -> bytes:
    """What is stored of an answer. `owner` (the key's digest) goes with it: no other row's content opens here."""
    return cipher().encrypt(owner + zlib.compress(answer, QUICKEST))


def opened(content: bytes, owner: bytes) -> bytes:
    """The answer again; raises Unreadable."""
    try:
        plain = cipher().decrypt(content)
    except InvalidToken as exc:
        raise Unreadable("none of ENCRYPTION_KEYS opens this answer") from exc
    if not plain.startswith(owner):
        raise Unreadable("this is the answer to another request")
    return zlib.decompress(plain[len(owner) :])
