"""What a new database gets once: a demo tenant with a key, a catalogue with a model, its price, an admin."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction

from gateway.catalogue.models import Deployment, Model, Price, Provider
from gateway.embedded import model as local_model
from tenants.models import Tenant
from tenants.services import import_api_keys, issue_key

ADMIN = "admin"
DEMO = "demo"
LOCAL = "local"
ECHO = "echo"
LIST_PRICE = {"input": 150_000_000, "cached_input": 75_000_000, "output": 600_000_000}  # nano-USD per million


@dataclass(frozen=True)
class Seeded:
    """Shown once; nothing can show these again."""

    key: str
    password: str

    def __str__(self) -> str:
        lines = [f"  API key         {self.key}    (tenant {DEMO})"]
        if self.password:
            lines += [f"  Admin name      {ADMIN}", f"  Admin password  {self.password}"]
        return "\n".join(lines)


def seed(*, with_local_model: bool) -> Seeded | None:
    """Fill a database in which there is no tenant yet; None if there is one. API_KEYS are taken in each time."""
    with transaction.atomic():
        seeded = None if Tenant.objects.exists() else _seed(with_local_model)
        if settings.API_KEYS:
            import_api_keys(settings.API_KEYS)
    return seeded


def _seed(with_local_model: bool) -> Seeded:
    if with_local_model:
        provider = Provider.objects.create(name=LOCAL, protocol=Provider.Protocol.OPENAI, base_url="http://127.0.0.1")
        _add_model(provider, local_model.NAME, local_model.CONTEXT_WINDOW)
    else:
        _add_model(Provider.objects.create(name=ECHO, protocol=Provider.Protocol.ECHO), ECHO, None)
    tenant = Tenant.objects.create(slug=DEMO, name="Demo", allowed_models=["*"])
    password = secrets.token_urlsafe(12)
    admin, created = User.objects.get_or_create(username=ADMIN, defaults={"is_staff": True, "is_superuser": True})
    if created:
        admin.set_password(password)
        admin.save(update_fields=["password"])
    _, key = issue_key(tenant=tenant, name="first key", created_by=admin)
    return Seeded(key=key, password=password if created else "")


def _add_model(provider: Provider, name: str, context_window: int | None) -> None:
    model = Model.objects.create(public_id=name, context_window=context_window, max_output_tokens=context_window)
    Deployment.objects.create(model=model, provider=provider, upstream_model=name)
    Price.objects.create(model=model, currency="USD", effective_from=datetime(2026, 1, 1, tzinfo=UTC), **LIST_PRICE)


def point_provider_at(base_url: str, credential: str) -> None:
    """Tell the catalogue where the local model listens. Saves only a change: each is a line of history."""
    provider = Provider.objects.filter(name=LOCAL).first()
    if provider and (provider.base_url, provider.credential) != (base_url, credential):
        provider.base_url, provider.credential = base_url, credential
        provider.save(update_fields=["base_url", "credential"])


def model_to_show() -> str | None:
    """A model that a first call can name: the local one, else any that is enabled."""
    enabled = Model.objects.filter(enabled=True, deployments__enabled=True)
    found = enabled.filter(public_id=local_model.NAME).first() or enabled.first()
    return found.public_id if found else None
