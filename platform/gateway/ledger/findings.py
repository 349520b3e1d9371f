"""What the comparison of counters with the ledger has found (drift.py): part of models.py."""

from __future__ import annotations

from django.db import models


class DriftCheck(models.Model):
    """How far the comparison of counters with the ledger is (drift.py): one row for limits, one for totals."""

    name = models.CharField(max_length=8, primary_key=True)  # limits | totals
    position = models.BigIntegerField(default=0)  # the last id of the round that is under way
    compared = models.IntegerField(default=0)  # in that round
    skipped = models.IntegerField(default=0)  # took too long to compare beside the desk
    found = models.IntegerField(default=0)
    checked_at = models.DateTimeField(null=True)  # the end of the last whole round, and its figures:
    last_compared = models.IntegerField(default=0)
    last_skipped = models.IntegerField(default=0)
    last_found = models.IntegerField(default=0)

    def __str__(self) -> str:
        return self.name


class DriftFinding(models.Model):
    """A counter that did not say what the ledger says. Repaired when it was found."""

    at = models.DateTimeField()
    scope = models.CharField(max_length=6)  # limit | tenant | key
    owner_id = models.BigIntegerField()  # of a limit: the tenant for a plan's rule, else 0
    rule_id = models.BigIntegerField(null=True)
    window_start = models.DateTimeField(null=True)
    currency = models.CharField(max_length=3, blank=True)
    name = models.CharField(max_length=20)  # used | held | slots | requests | tokens | charge | held_requests
    said = models.DecimalField(max_digits=38, decimal_places=0)
    right = models.DecimalField(max_digits=38, decimal_places=0)
    repaired = models.BooleanField()

    class Meta:
        ordering = ["-at", "-id"]
        indexes = [models.Index(fields=["-at"], name="driftfinding_at")]

    def __str__(self) -> str:
        return f"{self.counter}: {self.name} was {self.said}, right is {self.right}"

    @property
    def counter(self) -> str:
        if self.scope == "limit":
            owner = f" of tenant {self.owner_id}" if self.owner_id else ""
            return f"limit {self.rule_id}{owner} from {self.window_start:%Y-%m-%d %H:%M} UTC"
        return f"{self.scope} {self.owner_id} ({self.currency})"
