"""What is known of each deployment's health, shared by all processes, and how it came to be so.

The request path never reads these: each process keeps what matters in memory (`board`) and hears of changes within
a second. No foreign key is checked by the database: a deployment that is being edited must not hold a breaker up.
"""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now

from gateway.catalogue.models import Deployment


class Circuit(models.Model):
    """The breaker of one deployment. One without a row is closed. Written by `circuits` and `services`."""

    class State(models.TextChoices):
        CLOSED = "closed"
        OPEN = "open"  # half-open too, once `open_until` has passed

    class Forced(models.TextChoices):
        NO = "", "by its answers"
        OPEN = "open", "taken out of rotation"
        CLOSED = "closed", "always tried"

    deployment = models.OneToOneField(
        Deployment, models.CASCADE, primary_key=True, related_name="circuit", db_constraint=False
    )
    state = models.CharField(max_length=6, choices=State.choices, default=State.CLOSED, db_default=State.CLOSED)
    reason = models.CharField(max_length=200, default="", db_default="")
    since = models.DateTimeField(db_default=Now(), help_text="When the state last changed.")
    openings = models.PositiveIntegerField(default=0, db_default=0, help_text="In a row; each lasts longer.")
    open_until = models.DateTimeField(null=True)
    probe_by = models.UUIDField(null=True, help_text="The process that may try it now.")
    probe_until = models.DateTimeField(null=True, help_text="Then its claim ends by itself.")
    resting_until = models.DateTimeField(null=True, help_text="The provider asked for it: retry-after.")
    forced = models.CharField(max_length=6, choices=Forced.choices, default=Forced.NO, db_default=Forced.NO)
    forced_by = models.CharField(max_length=150, default="", db_default="")
    forced_reason = models.CharField(max_length=200, default="", db_default="")
    forced_at = models.DateTimeField(null=True)
    probed_at = models.DateTimeField(null=True, help_text="When it was last asked for its models.")
    probe_outcome = models.CharField(max_length=100, default="", db_default="")
    probe_failures = models.PositiveIntegerField(default=0, db_default=0, help_text="In a row.")
    updated_at = models.DateTimeField(db_default=Now())

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.deployment_id}: {self.forced or self.state}"


class HealthEvent(models.Model):
    """That a deployment's state changed, when, why, and through whom. Kept for 90 days."""

    class State(models.TextChoices):
        CLOSED = "closed", "in rotation"
        OPEN = "open", "open"
        HALF_OPEN = "half_open", "half-open"
        RESTING = "resting", "resting"
        OUT = "out", "taken out"
        ALWAYS = "always", "always tried"

    deployment = models.ForeignKey(
        Deployment, models.CASCADE, related_name="health_events", db_constraint=False, db_index=False
    )
    at = models.DateTimeField("at (UTC)", db_default=Now())
    before = models.CharField("from", max_length=9, choices=State.choices)
    after = models.CharField("to", max_length=9, choices=State.choices)
    reason = models.CharField(max_length=200, default="", db_default="")
    process = models.CharField(max_length=100, default="", db_default="", help_text="Which one found it out.")
    person = models.CharField(max_length=150, default="", db_default="", help_text="Who switched it.")

    class Meta:
        default_permissions = ("view",)
        indexes = [
            models.Index(fields=["deployment", "-id"], name="health_event_of"),
            models.Index(fields=["at"], name="health_event_at"),
        ]

    def __str__(self) -> str:
        return f"{self.before} to {self.after}"


class RecentResults(models.Model):
    """What one process counted of a deployment that fails now and then, in its last 30 s. For people to read."""

    deployment = models.ForeignKey(Deployment, models.CASCADE, related_name="recent_results", db_constraint=False)
    process = models.UUIDField()
    good = models.PositiveIntegerField()
    bad = models.PositiveIntegerField()
    at = models.DateTimeField(db_default=Now())

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["deployment", "process"], name="recent_results_unique")]

    def __str__(self) -> str:
        return f"{self.deployment_id}: {self.bad} of {self.good + self.bad} failed"


class DeploymentHealth(Deployment):
    """A deployment from its healthy or unhealthy side: the admin's page, and the permission to switch it."""

    class Meta:
        proxy = True
        default_permissions = ("view", "change")
        verbose_name = "deployment's health"
        verbose_name_plural = "health"
