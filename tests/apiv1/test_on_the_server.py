"""The wire over real sockets: what only Daphne, the lean handler and the views together can show."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import openai
import pytest
import requests
from django.db import connection
from django.utils import timezone

from gateway.catalogue.models import Deployment, Model, Price, Provider
from gateway.ledger.models import UsageRecord
from gateway.limits.models import LimitRule
from tenants import services
from tenants.models import APIKey, Tenant
from tests.servers import RunningServer, running_server

HELLO: dict[str, Any] = {"model": "acme-chat", "messages": [{"role": "user", "content": "Hello there"}]}
NEEDS_DATABASE = pytest.mark.django_db(transaction=True)
pytestmark = NEEDS_DATABASE


@pytest.fixture
def acme(transactional_db: None) -> Tenant:
    provider = Provider.objects.create(name="echo", protocol="echo")
    model = Model.objects.create(public_id="acme-chat")
    Deployment.objects.create(model=model, provider=provider, upstream_model="echo")
    long_ago = timezone.now() - timedelta(days=1)
    Price.objects.create(model=model, currency="USD", input=10**9, output=10**9, effective_from=long_ago)
    return Tenant.objects.create(slug="acme", name="Acme", allowed_models=["*"])


@pytest.fixture
def issued(acme: Tenant) -> tuple[APIKey, str]:
    return services.issue_key(tenant=acme, name="laptop")


@pytest.fixture
def server(acme: Tenant) -> Iterator[RunningServer]:
    with running_server({"FORMAT_ERROR_STATUS": "422"}) as server:
        yield server
    connection.close()


def test_one_server_serves_all_of_it(server: RunningServer, issued: tuple[APIKey, str], acme: Tenant) -> None:
    """One start for many short checks: each is a function of its own below."""
    key, secret = issued
    for check in (check_clients, check_raw_forms, check_methods, check_imports):
        check(server, secret)
    check_rates(server, secret, acme)
    check_revocation(server, key, secret, acme)
    line = next(line for line in server.request_lines() if line["path"] == "/v1/chat/completions")
    assert secret not in server.log.read_text()
    assert {"tenant", "key", "model", "input_tokens", "output_tokens"} <= set(line)


def check_clients(server: RunningServer, secret: str) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key=secret, max_retries=0)
    answer = client.chat.completions.create(**HELLO)
    assert answer.choices[0].message.content == "Hello there"
    assert answer._request_id is not None
    assert re.fullmatch(r"req_[0-9a-f]{32}", answer._request_id)
    assert UsageRecord.objects.get().request_id.hex == answer._request_id[4:]
    chunks = list(client.chat.completions.create(**HELLO, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello there"
    assert chunks[-1].usage is not None
    assert [model.id for model in client.models.list()] == ["acme-chat"]
    assert client.models.retrieve("acme-chat").id == "acme-chat"
    with pytest.raises(openai.NotFoundError) as lost:
        client.models.retrieve("nobody's")
    assert lost.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(**HELLO, temperature=3)
    assert (bad.value.code, bad.value.param) == ("decimal_above_max_value", "temperature")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-wrong").models.list()


def check_raw_forms(server: RunningServer, secret: str) -> None:
    url, headers = f"{server}/v1/chat/completions", {"Authorization": f"Bearer {secret}"}
    for raw in (b"", b"{", b"[]", b'{"x":' * 10_000 + b"1" + b"}" * 10_000, b'{"a":NaN}', b'{"model":"\\ud800"}'):
        response = requests.post(url, data=raw, headers={**headers, "Content-Type": "application/json"}, timeout=20)
        assert response.status_code == 422, raw[:20]
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    response = requests.post(url, files={"file": b"x"}, headers=headers, timeout=20)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported_content_type")
    bare = requests.post(url, data=json.dumps(HELLO), headers=headers, timeout=20)
    assert bare.status_code == 200
    for value in ("Bearer \xe9\xe8", "Basic dTpw", "bearer"):
        response = requests.post(url, json=HELLO, headers={"Authorization": value.encode("latin-1")}, timeout=20)
        assert response.status_code == 401
        assert response.headers["x-request-id"].startswith("req_")


def check_methods(server: RunningServer, secret: str) -> None:
    headers = {"Authorization": f"Bearer {secret}"}
    head = requests.head(f"{server}/v1/models", headers=headers, timeout=20)
    assert (head.status_code, head.content) == (200, b"")
    slash = requests.post(f"{server}/v1/chat/completions/", json=HELLO, headers=headers, timeout=20)
    assert slash.status_code == 200
    streamed = requests.post(
        f"{server}/v1/chat/completions/", json={**HELLO, "stream": True}, headers=headers, timeout=20
    )
    assert streamed.text.endswith("data: [DONE]\n\n")
    wrong = requests.get(f"{server}/v1/chat/completions", timeout=20)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "OPTIONS, POST")
    options = requests.options(f"{server}/v1/chat/completions", timeout=20)
    assert options.status_code == 204
    lost = requests.post(f"{server}/v1/engines", timeout=20)
    assert lost.json()["error"]["message"] == "Invalid URL (POST /v1/engines)"


def check_imports(server: RunningServer, secret: str) -> None:
    """The catalogue's version moves with an import: who is served next makes the server read it."""
    services.import_api_keys(["s3cret"])
    url = f"{server}/v1/models"
    assert requests.get(url, headers={"Authorization": f"Bearer {secret}"}, timeout=20).status_code == 200
    assert requests.get(url, headers={"Authorization": "Bearer s3cret"}, timeout=20).status_code == 200


def check_rates(server: RunningServer, secret: str, acme: Tenant) -> None:
    rule = LimitRule.objects.create(tenant=acme, metric="requests", per="day", amount=100)
    url, headers = f"{server}/v1/chat/completions", {"Authorization": f"Bearer {secret}"}
    left = requests.post(url, json=HELLO, headers=headers, timeout=20).headers["x-ratelimit-remaining-requests"]
    for changes, status in (
        ({"temperature": 9}, 400),
        ({"model": "zzz"}, 404),
        ({"messages": 1, "stream": True}, 422),
    ):
        refused = requests.post(url, json={**HELLO, **changes}, headers=headers, timeout=20)
        assert (refused.status_code, refused.headers["x-ratelimit-remaining-requests"]) == (status, left)
    lost = requests.get(f"{server}/v1/models/zzz", headers=headers, timeout=20)
    assert (lost.status_code, lost.headers["x-ratelimit-remaining-requests"]) == (404, left)
    rule.delete()


def check_revocation(server: RunningServer, key: APIKey, secret: str, acme: Tenant) -> None:
    url, headers = f"{server}/v1/chat/completions", {"Authorization": f"Bearer {secret}"}

    def code() -> Any:
        response = requests.post(url, json=HELLO, headers=headers, timeout=20)
        return response.json().get("error", {}).get("code", response.status_code)

    assert code() == 200
    Tenant.objects.filter(pk=acme.pk).update(status="suspended")
    assert code() == "tenant_suspended"
    Tenant.objects.filter(pk=acme.pk).update(status="active")
    assert code() == 200
    APIKey.objects.filter(pk=key.pk).update(allowed_models=["other-*"])
    assert code() == "model_not_found"
    APIKey.objects.filter(pk=key.pk).update(allowed_models=["*"])
    assert code() == 200
    services.revoke_key(key=key, by=None)
    assert code() == "invalid_api_key"
    assert requests.get(f"{server}/v1/models", headers=headers, timeout=20).status_code == 401
