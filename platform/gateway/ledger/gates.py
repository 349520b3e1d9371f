"""Deployments' own limits, as they stand (migrations/0018_gates.sql decides): part of models.py."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models

SLOTS = 61  # the second of now, and the sixty before it: both ends of a sliding minute


class Gate(models.Model):
    """What a deployment with limits of its own has taken of late. What runs there is its holds'."""

    deployment_id = models.BigIntegerField(primary_key=True)
    requests = ArrayField(models.BigIntegerField())  # 61 seconds, as a LimitCounter's slots
    requests_live = models.BigIntegerField()  # their sum at slot_at
    tokens = ArrayField(models.BigIntegerField())
    tokens_live = models.BigIntegerField()
    slot_at = models.BigIntegerField()  # the newest second

    def __str__(self) -> str:
        return f"gate of deployment {self.deployment_id}"


def live(slots: list[int], slot_at: int, at: int) -> int:
    """What of these slots is within the minute up to `at`, a second of the clock."""
    seconds = range(slot_at - SLOTS + 1, slot_at + 1)
    return sum(slots[second % SLOTS] for second in seconds if second > at - SLOTS)
