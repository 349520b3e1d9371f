"""What can be called, where it is served, and at what price.

Every row here is read by the request path from a snapshot (`catalogue.snapshot`); triggers bump the one
`CatalogueVersion` row, so that a change counts from the next request on in every process.
"""

from __future__ import annotations

from typing import Self

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from simple_history.models import HistoricalRecords

from gateway.catalogue.fields import EncryptedTextField
from gateway.catalogue.validators import validate_base_url
from tenants.models import Tenant

MODEL_ID = RegexValidator(r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}$", "Letters, digits and . _ : / @ + - only.")

API_VERSION = RegexValidator(r"^[A-Za-z0-9][A-Za-z0-9.-]*$", "Letters, digits, dots and dashes only.")
AS_BETWEEN = "Empty: as between chunks."
AS_PROVIDER = "Empty: the provider's."


class Provider(models.Model):
    """A company or machine that serves models, and how to reach it."""

    class Protocol(models.TextChoices):
        OPENAI = "openai", "OpenAI-compatible HTTP"
        AZURE = "azure", "Azure OpenAI"
        ANTHROPIC = "anthropic", "Anthropic Messages"
        GEMINI = "gemini", "Google Gemini"
        ECHO = "echo", "Echo (answers with the prompt; for trying things out)"

    name = models.SlugField(max_length=63, unique=True)
    protocol = models.CharField(max_length=20, choices=Protocol.choices, default=Protocol.OPENAI)
    base_url = models.CharField(
        "base URL", max_length=500, blank=True, validators=[validate_base_url], help_text="https://host/v1"
    )
    credential = EncryptedTextField(blank=True, default="", help_text="The provider's API key. Stored encrypted.")
    connect_timeout_s = models.PositiveIntegerField(
        "connect time-out (s)", default=5, validators=[MinValueValidator(1)]
    )
    first_byte_timeout_s = models.PositiveIntegerField(
        "first byte time-out (s)", null=True, blank=True, validators=[MinValueValidator(1)], help_text=AS_BETWEEN
    )
    read_timeout_s = models.PositiveIntegerField(
        "time-out between chunks (s)", default=600, validators=[MinValueValidator(1)]
    )
    total_timeout_s = models.PositiveIntegerField(
        "total time-out (s)", null=True, blank=True, validators=[MinValueValidator(1)], help_text="Empty: none."
    )
    api_version = models.CharField(
        "API version",
        max_length=40,
        blank=True,
        default="",
        validators=[API_VERSION],
        help_text="Azure's api-version, Anthropic's anthropic-version. Empty: the one that this release knows.",
    )
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)
    history = HistoricalRecords(excluded_fields=["credential"])

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Model(models.Model):
    """A model under its public id: what clients put into `model`."""

    class ReasoningField(models.TextChoices):
        REASONING = "reasoning"
        REASONING_CONTENT = "reasoning_content"
        BOTH = "both"

    class Strategy(models.TextChoices):
        WEIGHTED = "weighted", "weighted: at random, by weight"
        LEAST_BUSY = "least_busy", "least busy: fewest requests in flight for its weight"
        LOWEST_COST = "lowest_cost", "lowest cost: what the provider charges us"
        LOWEST_LATENCY = "lowest_latency", "lowest latency: the shortest wait for a first byte lately"

    public_id = models.CharField("id", max_length=200, unique=True, validators=[MODEL_ID])
    aliases = ArrayField(models.CharField(max_length=200, validators=[MODEL_ID]), default=list, blank=True)
    owned_by = models.CharField(max_length=100, default="counterfoil")
    context_window = models.PositiveIntegerField(null=True, blank=True, help_text="Tokens; empty: not checked.")
    max_output_tokens = models.PositiveIntegerField(null=True, blank=True, help_text="Tokens; empty: no cap.")
    capabilities = ArrayField(models.CharField(max_length=40), default=list, blank=True)
    reasoning_field = models.CharField(
        max_length=20,
        choices=ReasoningField.choices,
        default=ReasoningField.REASONING,
        help_text="The name under which reasoning text reaches clients.",
    )
    strategy = models.CharField(
        max_length=14,
        choices=Strategy.choices,
        default=Strategy.WEIGHTED,
        help_text="Which of the healthy deployments of the best priority is called.",
    )
    sticky = models.BooleanField(
        default=False,
        help_text="The same deployment for the same prompt_cache_key or user, for the provider's prompt cache.",
    )
    fallbacks = ArrayField(
        models.CharField(max_length=200, validators=[MODEL_ID]),
        default=list,
        blank=True,
        help_text="Models that answer when no deployment of this one can, in this order.",
    )
    max_attempts = models.PositiveSmallIntegerField(
        default=3,
        validators=[MinValueValidator(1), MaxValueValidator(10)],
        help_text="Calls to providers for one request, the first included.",
    )
    retry_within_s = models.PositiveIntegerField(
        "retry within (s)", default=60, help_text="No further attempt begins later than this after the request."
    )
    connect_timeout_s = models.PositiveIntegerField(
        "connect time-out (s)", null=True, blank=True, validators=[MinValueValidator(1)], help_text=AS_PROVIDER
    )
    first_byte_timeout_s = models.PositiveIntegerField(
        "first byte time-out (s)", null=True, blank=True, validators=[MinValueValidator(1)], help_text=AS_PROVIDER
    )
    read_timeout_s = models.PositiveIntegerField(
        "time-out between chunks (s)", null=True, blank=True, validators=[MinValueValidator(1)], help_text=AS_PROVIDER
    )
    total_timeout_s = models.PositiveIntegerField(
        "total time-out (s)", null=True, blank=True, validators=[MinValueValidator(1)], help_text=AS_PROVIDER
    )
    refuse_unpriced = models.BooleanField(
        default=True, help_text="Refuse requests while there is no price in the tenant's currency."
    )
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)
    history = HistoricalRecords()

    class Meta:
        ordering = ["public_id"]

    def __str__(self) -> str:
        return self.public_id


class Deployment(models.Model):
    """A model at a provider. The lowest priority number is called first; weight shares among equals."""

    model = models.ForeignKey(Model, models.CASCADE, related_name="deployments")
    provider = models.ForeignKey(Provider, models.PROTECT, related_name="deployments")
    upstream_model = models.CharField(max_length=200, help_text="The provider's own name for the model.")
    priority = models.PositiveIntegerField(default=0)
    weight = models.PositiveIntegerField(default=1)
    rpm = models.PositiveIntegerField(
        "requests a minute", null=True, blank=True, validators=[MinValueValidator(1)], help_text="Empty: no limit."
    )
    tpm = models.PositiveIntegerField(
        "tokens a minute", null=True, blank=True, validators=[MinValueValidator(1)], help_text="Empty: no limit."
    )
    max_in_flight = models.PositiveIntegerField(
        "in flight", null=True, blank=True, validators=[MinValueValidator(1)], help_text="Empty: no limit."
    )
    probe_every_s = models.PositiveIntegerField(
        "probe every (s)",
        null=True,
        blank=True,
        validators=[MinValueValidator(5)],
        help_text="Ask the provider for its models so often; empty: only requests tell whether it is healthy.",
    )
    enabled = models.BooleanField(default=True)
    history = HistoricalRecords()

    class Meta:
        ordering = ["model", "priority", "id"]
        constraints = [
            models.UniqueConstraint(fields=["model", "provider", "upstream_model"], name="deployment_unique")
        ]

    def __str__(self) -> str:
        return f"{self.model} at {self.provider}"


class PriceQuerySet(models.QuerySet["Price"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        """The tenant's own prices and the list prices: never a neighbour's, never what we pay."""
        return self.filter(models.Q(tenant=tenant) | models.Q(tenant=None), side=Price.Side.CHARGE)


class Price(models.Model):
    """Nano-units of `currency` per 1,000,000 units of use, from `effective_from` until the next row's.

    side=charge with a tenant is that tenant's own price, without one the list price; side=cost is what the
    provider (or, when empty, any provider) charges us. Immutable once used: triggers refuse it.
    An empty cached input, cache write or reasoning price means: as input, as input, as output.
    """

    class Side(models.TextChoices):
        CHARGE = "charge"
        COST = "cost"

    model = models.ForeignKey(Model, models.PROTECT, related_name="prices")
    side = models.CharField(max_length=6, choices=Side.choices, default=Side.CHARGE)
    tenant = models.ForeignKey(Tenant, models.PROTECT, null=True, blank=True, related_name="prices")
    provider = models.ForeignKey(Provider, models.PROTECT, null=True, blank=True, related_name="prices")
    effective_from = models.DateTimeField()
    currency = models.CharField(max_length=3, validators=[RegexValidator(r"^[A-Z]{3}$", "ISO 4217, such as USD.")])
    input = models.BigIntegerField()
    cached_input = models.BigIntegerField(null=True, blank=True)
    cache_write = models.BigIntegerField(null=True, blank=True)
    output = models.BigIntegerField()
    reasoning = models.BigIntegerField(null=True, blank=True)
    request = models.BigIntegerField(default=0, help_text="Per 1,000,000 requests.")
    first_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = PriceQuerySet.as_manager()

    class Meta:
        ordering = ["model", "side", "currency", "-effective_from"]
        constraints = [
            models.UniqueConstraint(
                fields=["model", "side", "tenant", "provider", "currency", "effective_from"],
                name="price_unique",
                nulls_distinct=False,
            ),
            models.CheckConstraint(
                name="price_not_negative",
                condition=models.Q(input__gte=0, output__gte=0, request__gte=0)
                & (models.Q(cached_input=None) | models.Q(cached_input__gte=0))
                & (models.Q(cache_write=None) | models.Q(cache_write__gte=0))
                & (models.Q(reasoning=None) | models.Q(reasoning__gte=0)),
            ),
            models.CheckConstraint(
                name="price_owner_fits_side",
                condition=models.Q(side="charge", provider=None) | models.Q(side="cost", tenant=None),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model} {self.side} {self.currency} from {self.effective_from:%Y-%m-%d}"


class CatalogueVersion(models.Model):
    """One row. Triggers add one on every change of what a snapshot holds."""

    version = models.BigIntegerField(default=1)

    def __str__(self) -> str:
        return str(self.version)
