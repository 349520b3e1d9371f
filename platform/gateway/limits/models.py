"""Limit rules: how much a tenant, a key, a model or a pair of them may use, per window.

A rule belongs to a subject (tenant, key, model, tenant x model, key x model) or to a plan, a template that tenants
share; a tenant's own rule for the same metric, window and model takes the place of its plan's. Rules only say what is
allowed: what was used is in `LimitCounter`, one row per rule, owner and window, which the desk's SQL alone writes.
Amounts of a spend limit are nano-units of `currency`; of the others plain counts.
"""

from __future__ import annotations

from datetime import datetime
from typing import Self

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from simple_history.models import HistoricalRecords

from gateway.catalogue.models import Model
from gateway.catalogue.pricing import format_amount
from gateway.limits import sense
from tenants.models import APIKey, Tenant

DAY_OF_MONTH = [MinValueValidator(1), MaxValueValidator(28)]


def default_thresholds() -> list[int]:
    return [50, 80, 100]


class Plan(models.Model):
    """A named set of rules that tenants share."""

    slug = models.SlugField(max_length=63, unique=True)
    name = models.CharField(max_length=200)
    tenants = models.ManyToManyField(Tenant, through="PlanMembership", related_name="+")
    history = HistoricalRecords()

    class Meta:
        ordering = ["slug"]

    def __str__(self) -> str:
        return self.slug


class PlanMembership(models.Model):
    """A tenant has one plan or none."""

    tenant = models.OneToOneField(Tenant, models.CASCADE, related_name="plan_membership")
    plan = models.ForeignKey(Plan, models.PROTECT, related_name="memberships")

    def __str__(self) -> str:
        return f"{self.tenant} has {self.plan}"


class LimitRuleQuerySet(models.QuerySet["LimitRule"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        """What applies to a tenant: its own rules, its keys' and its plan's."""
        return self.filter(
            models.Q(tenant=tenant) | models.Q(key__tenant=tenant) | models.Q(plan__memberships__tenant=tenant)
        )


class LimitRule(models.Model):
    """At most `amount` of `metric` per window, for the subject."""

    class Metric(models.TextChoices):
        REQUESTS = "requests"
        TOKENS = "tokens"
        IN_FLIGHT = "in_flight"
        SPEND = "spend"

    class Per(models.TextChoices):
        MINUTE = "minute"
        DAY = "day"
        WEEK = "week"
        MONTH = "month"
        FISCAL_MONTH = "fiscal_month"
        TOTAL = "total"

    class Tokens(models.TextChoices):
        BOTH = "both"
        INPUT = "input"
        OUTPUT = "output"

    class Mode(models.TextChoices):
        ENFORCE = "enforce"
        OBSERVE = "observe"

    class Hold(models.TextChoices):
        EXPECTED = "expected"
        HARD = "hard"

    class Shortage(models.TextChoices):
        REFUSE = "refuse"
        FIT = "fit"

    plan = models.ForeignKey(Plan, models.CASCADE, null=True, blank=True, related_name="rules")
    tenant = models.ForeignKey(Tenant, models.CASCADE, null=True, blank=True, related_name="limit_rules")
    key = models.ForeignKey(APIKey, models.CASCADE, null=True, blank=True, related_name="limit_rules")
    model = models.ForeignKey(Model, models.CASCADE, null=True, blank=True, related_name="limit_rules")
    metric = models.CharField(max_length=10, choices=Metric.choices)
    per = models.CharField(max_length=12, choices=Per.choices, blank=True, help_text="Empty for in flight.")
    tokens = models.CharField(max_length=6, choices=Tokens.choices, default=Tokens.BOTH)
    amount = models.BigIntegerField(validators=[MinValueValidator(0)])
    currency = models.CharField(max_length=3, blank=True, validators=[RegexValidator(r"^[A-Z]{3}$", "ISO 4217.")])
    mode = models.CharField(max_length=7, choices=Mode.choices, default=Mode.ENFORCE)
    hold = models.CharField(max_length=8, choices=Hold.choices, default=Hold.EXPECTED)
    on_shortage = models.CharField(max_length=6, choices=Shortage.choices, default=Shortage.REFUSE)
    floor = models.PositiveIntegerField(default=16, help_text="fit: never below so many completion tokens.")
    raised_amount = models.BigIntegerField(null=True, blank=True, help_text="A temporary amount ...")
    raised_until = models.DateTimeField(null=True, blank=True, help_text="... until then.")
    fiscal_day = models.PositiveSmallIntegerField(default=1, validators=DAY_OF_MONTH)
    thresholds = ArrayField(models.PositiveSmallIntegerField(), default=default_thresholds, blank=True)
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)
    history = HistoricalRecords()

    objects = LimitRuleQuerySet.as_manager()

    class Meta:
        ordering = ["tenant", "key", "model", "metric", "per", "id"]
        constraints = [
            models.CheckConstraint(
                name="limit_subject",
                condition=(
                    models.Q(plan__isnull=False, tenant=None, key=None)
                    | models.Q(plan=None, tenant__isnull=False, key=None)
                    | models.Q(plan=None, tenant=None, key__isnull=False)
                    | models.Q(plan=None, tenant=None, key=None, model__isnull=False)
                ),
            ),
            models.CheckConstraint(
                name="limit_window_fits_metric",
                condition=(
                    models.Q(metric="in_flight", per="")
                    | models.Q(metric__in=["requests", "tokens"], per__in=["minute", "day"])
                    | models.Q(metric="spend", per__in=["day", "week", "month", "fiscal_month", "total"])
                ),
            ),
            models.CheckConstraint(
                name="limit_spend_has_currency",
                condition=models.Q(metric="spend", currency__regex=r"^[A-Z]{3}$")
                | (~models.Q(metric="spend") & models.Q(currency="")),
            ),
            models.CheckConstraint(
                name="limit_raise_has_an_end",
                condition=models.Q(raised_amount=None, raised_until=None)
                | models.Q(raised_amount__gte=0, raised_until__isnull=False),
            ),
            models.CheckConstraint(name="limit_not_negative", condition=models.Q(amount__gte=0)),
            models.UniqueConstraint(
                fields=["plan", "tenant", "key", "model", "metric", "per", "tokens", "currency"],
                name="limit_unique",
                nulls_distinct=False,
            ),
        ]

    def __str__(self) -> str:
        amount = f"{format_amount(self.amount)} {self.currency}" if self.metric == "spend" else str(self.amount)
        return f"{self.subject}: {amount} {self.metric}" + (f" per {self.per}" if self.per else "")

    @property
    def subject(self) -> str:
        parts = [str(part) for part in (self.plan, self.tenant, self.key, self.model) if part is not None]
        return " x ".join(parts)

    def amount_at(self, now: datetime) -> int:
        """The amount in force: the raised one until its end."""
        if self.raised_amount is not None and self.raised_until is not None and now < self.raised_until:
            return self.raised_amount
        return self.amount

    def tidy(self) -> None:
        """Fields that mean nothing for the metric are put to what they are when nobody sets them."""
        sense.tidied(self)

    def clean(self) -> None:
        self.tidy()
        if found := sense.problems(self):
            raise ValidationError(found)


class Credit(models.Model):
    """A top-up of a prepaid limit (metric spend, per total): adds to its amount until it expires."""

    rule = models.ForeignKey(LimitRule, models.PROTECT, related_name="credits")
    amount = models.BigIntegerField(validators=[MinValueValidator(1)], help_text="Nano-units.")
    expires_at = models.DateTimeField(null=True, blank=True)
    expired_amount = models.BigIntegerField(default=0, editable=False, help_text="What was unused when it expired.")
    closed_at = models.DateTimeField(null=True, blank=True, editable=False)
    note = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["created_at", "id"]

    def __str__(self) -> str:
        return f"credit {self.pk} of rule {self.rule_id}"

    def clean(self) -> None:
        """The database refuses the same (`credit_has_one_account`)."""
        if self._state.adding and self.rule_id is not None and (problem := sense.credit_problem(self.rule)):
            raise ValidationError({"rule": problem})


class LimitCounter(models.Model):
    """What one owner has used of one rule in one window: the sum of its rows. The desk's SQL alone writes them."""

    rule_id = models.BigIntegerField()
    owner_id = models.BigIntegerField(default=0)  # the tenant, for a plan's rule; else 0
    window_start = models.DateTimeField()
    window_end = models.DateTimeField(null=True)
    used = models.DecimalField(max_digits=38, decimal_places=0, default=0)
    held = models.DecimalField(max_digits=38, decimal_places=0, default=0)
    slots = ArrayField(models.BigIntegerField(), null=True)  # per minute: 61 seconds, slot = epoch second % 61
    slot_at = models.BigIntegerField(null=True)  # the newest second in slots
    live = models.BigIntegerField(null=True)  # the sum of slots; None: not known
    # Where many processes want the row at once each has one of its own: the sum of all is what was used.
    shard = models.SmallIntegerField(default=0, db_default=0)  # the process's number; 0: the first row
    share = models.DecimalField(max_digits=38, decimal_places=0, null=True)  # may be taken here; None: all there is
    share_of = models.BigIntegerField(null=True)  # the limit's amount when it was shared out
    moved_at = models.BigIntegerField(null=True)  # epoch second of the last change
    stepped_to = models.BigIntegerField(null=True)  # the clock was put back from here: until then seconds repeat

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["rule_id", "owner_id", "window_start", "shard"], name="limitcounter_unique"
            )
        ]

    def __str__(self) -> str:
        return f"rule {self.rule_id} from {self.window_start}"


# Django finds an app's models here.
from gateway.limits.notices import Delivery as Delivery  # noqa: E402
from gateway.limits.notices import LimitWarning as LimitWarning  # noqa: E402
from gateway.limits.notices import WebhookEndpoint as WebhookEndpoint  # noqa: E402
from gateway.limits.refusals_log import Refusal as Refusal  # noqa: E402
