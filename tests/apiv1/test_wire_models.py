"""GET /models and /models/{id}."""

from __future__ import annotations

import pytest
from django.test import AsyncClient

from gateway import snapshots
from gateway.catalogue.models import Deployment, Model
from tenants import services
from tenants.models import APIKey, Tenant


async def ids(client: AsyncClient, bearer: dict[str, str]) -> list[str]:
    return [model["id"] for model in (await client.get("/v1/models", headers=bearer)).json()["data"]]


async def test_it_lists_what_the_key_may_call(
    client: AsyncClient, bearer: dict[str, str], models: dict[str, Model]
) -> None:
    response = await client.get("/v1/models", headers=bearer)
    assert (response.status_code, response["content-type"]) == (200, "application/json")
    assert response.json() == {
        "object": "list",
        "data": [
            {
                "id": name,
                "object": "model",
                "created": int(models[name].created_at.timestamp()),
                "owned_by": "acme-llm",
            }
            for name in ("acme-chat", "acme/chat:7b")
        ],
    }


async def test_the_neighbour_sees_its_own(client: AsyncClient, globex: Tenant, models: dict[str, Model]) -> None:
    _, secret = await snapshots.read(
        lambda: services.issue_key(tenant=globex, name="all but acme's", allowed_models=["globex-*"])
    )
    assert await ids(client, {"authorization": f"Bearer {secret}"}) == ["globex-chat"]


async def test_it_retrieves_a_model(client: AsyncClient, bearer: dict[str, str], models: dict[str, Model]) -> None:
    for path, found in (
        ("acme-chat", "acme-chat"),
        ("acme-chat/", "acme-chat"),
        ("acme/chat:7b", "acme/chat:7b"),
        ("acme%2Fchat%3A7b", "acme/chat:7b"),
        ("acme/chat:7b/", "acme/chat:7b"),
        ("acme-latest", "acme-chat"),
    ):
        response = await client.get(f"/v1/models/{path}", headers=bearer)
        assert response.status_code == 200
        assert (response.json()["id"], response.json()["object"]) == (found, "model")


async def test_a_model_of_others_does_not_exist(
    client: AsyncClient, bearer: dict[str, str], models: dict[str, Model]
) -> None:
    for name in ("globex-chat", "no-such", "no/such:one"):
        response = await client.get(f"/v1/models/{name}", headers=bearer)
        assert response.status_code == 404
        assert response.json()["error"] == {
            "message": f"The model `{name}` does not exist or you do not have access to it.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }


async def test_it_sees_changes_from_the_next_request_on(
    client: AsyncClient, bearer: dict[str, str], models: dict[str, Model], key: APIKey, acme: Tenant
) -> None:
    assert await ids(client, bearer) == ["acme-chat", "acme/chat:7b"]
    await snapshots.read(lambda: Deployment.objects.filter(model__public_id="acme-chat").update(enabled=False))
    assert await ids(client, bearer) == ["acme/chat:7b"]
    await snapshots.read(lambda: Tenant.objects.filter(pk=acme.pk).update(allowed_models=["globex-*"]))
    assert await ids(client, bearer) == ["globex-chat"]
    await snapshots.read(lambda: services.revoke_key(key=key, by=None))
    for url in ("/v1/models", "/v1/models/globex-chat"):
        response = await client.get(url, headers=bearer)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("url", ["/v1/models", "/v1/models/acme-chat"])
async def test_it_asks_for_a_key(visitor: AsyncClient, url: str) -> None:
    assert (await visitor.get(url)).status_code == 401


async def test_a_model_that_is_left_to_its_fallbacks_is_listed_as_it_answers(
    client: AsyncClient, bearer: dict[str, str], models: dict[str, Model]
) -> None:
    model = models["acme-chat"]
    await model.deployments.aupdate(enabled=False)
    for fallbacks, listed in (([], False), (["globex-chat"], False), (["globex-chat", "acme/chat:7b"], True)):
        model.fallbacks = fallbacks
        await model.asave()
        assert ("acme-chat" in await ids(client, bearer)) is listed
        found = await client.get("/v1/models/acme-chat", headers=bearer)
        assert found.status_code == (200 if listed else 404)
