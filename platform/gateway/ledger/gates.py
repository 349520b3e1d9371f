"""Deployments' own limits, as they stand (migrations/0017_gates.sql decides): part of models.py."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models


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
