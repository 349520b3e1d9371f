"""A flood without a key over real sockets: the lean handler and Django's own know the address alike."""

from __future__ import annotations

import pytest
import requests
from django.db import connection

from tenants import services
from tenants.models import Tenant
from tests.servers import running_server

FEW = {"UNAUTHENTICATED_PER_MINUTE": "5", "BEHIND_PROXY": "1", "CORS_ORIGINS": "*"}


@pytest.mark.django_db(transaction=True)
def test_a_flood_is_refused_by_address_and_a_good_key_is_not() -> None:
    tenant = Tenant.objects.create(slug="acme", name="Acme", allowed_models=["*"])
    _, secret = services.issue_key(tenant=tenant, name="laptop")
    with running_server(FEW) as server:
        chat, models = f"{server}/v1/chat/completions", f"{server}/v1/models"
        mine = {"X-Forwarded-For": "203.0.113.1, 198.51.100.7", "Origin": "https://app.example.com"}
        statuses = [requests.post(chat, json={}, headers=mine, timeout=20).status_code for _ in range(3)]
        statuses += [requests.get(models, headers=mine, timeout=20).status_code for _ in range(3)]
        assert statuses == [401] * 5 + [429]
        refused = requests.post(chat, json={}, headers=mine, timeout=20)
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after-ms"]) > 0
        assert "retry-after-ms" in refused.headers["access-control-expose-headers"]
        assert "x-counterfoil-max-tokens" in refused.headers["access-control-expose-headers"]
        good = {**mine, "Authorization": f"Bearer {secret}"}
        assert requests.get(models, headers=good, timeout=20).status_code == 200
        other = {"X-Forwarded-For": "198.51.100.7, 203.0.113.1"}
        assert requests.post(chat, json={}, headers=other, timeout=20).status_code == 401
    connection.close()
