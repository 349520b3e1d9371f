from __future__ import annotations

import pytest

from gateway.catalogue.models import Deployment, Model, Provider
from tests.cast import acme, admin, browser, finance, globex

__all__ = ["acme", "admin", "browser", "finance", "globex"]


@pytest.fixture
def deployment(db: None) -> Deployment:
    provider = Provider.objects.create(name="acme-llm", base_url="http://127.0.0.1:9100/v1", credential="sk-theirs")
    model = Model.objects.create(public_id="acme-chat")
    return Deployment.objects.create(model=model, provider=provider, upstream_model="acme-chat-2026-01")
