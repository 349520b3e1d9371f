"""Routes and methods that are not: OpenAI's envelope, never HTML, never a redirect."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from django.http import HttpRequest
from django.test import AsyncClient
from ninja import Router

from apiv1.api import Wire, api

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", ["/v1/x", "/v1/", "/v1/chat", "/v1/chat/completions/x", "/v1/engines/x/y"])
async def test_an_unknown_route_says_so(visitor: AsyncClient, method: str, path: str) -> None:
    response = await visitor.generic(method, path)
    assert response.status_code == 404
    assert response["content-type"] == "application/json"
    assert response.json()["error"] == {
        "message": f"Invalid URL ({method} {path})",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


@pytest.mark.parametrize(
    ("method", "path", "allow", "hint"),
    [
        ("GET", "/v1/chat/completions", "OPTIONS, POST", "POST"),
        ("DELETE", "/v1/chat/completions", "OPTIONS, POST", "POST"),
        ("HEAD", "/v1/chat/completions", "OPTIONS, POST", "POST"),
        ("POST", "/v1/models", "GET, HEAD, OPTIONS", "GET"),
        ("DELETE", "/v1/models/acme/chat:7b", "GET, HEAD, OPTIONS", "GET"),
    ],
)
async def test_a_wrong_method_says_which_is_right(
    visitor: AsyncClient, method: str, path: str, allow: str, hint: str
) -> None:
    response = await visitor.generic(method, path)
    assert (response.status_code, response["allow"]) == (405, allow)
    if method != "HEAD":
        assert response.json()["error"] == {
            "message": f"Not allowed to {method} on {path}. (HINT: Perhaps you meant to use {hint}?)",
            "type": "invalid_request_error",
            "param": None,
            "code": "method_not_supported",
        }


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/models/x"])
async def test_options_name_the_methods(visitor: AsyncClient, path: str) -> None:
    response = await visitor.options(path)
    assert response.status_code == 204
    assert "OPTIONS" in response["allow"]


async def test_head_goes_with_get(client: AsyncClient, bearer: dict[str, str], models: Any) -> None:
    assert (await client.head("/v1/models", headers=bearer)).status_code == 200


async def test_a_slash_at_the_end_does_not_matter(client: AsyncClient, bearer: dict[str, str], models: Any) -> None:
    for path in ("/v1/models", "/v1/models/", "/v1/models/acme-chat/"):
        assert (await client.get(path, headers=bearer)).status_code == 200
    body = {"model": "acme-chat", "messages": [{"role": "user", "content": "Hi"}]}
    response = await client.post("/v1/chat/completions/", body, content_type="application/json", headers=bearer)
    assert response.status_code == 200


async def test_every_answer_has_an_id_of_its_own(visitor: AsyncClient) -> None:
    ids = {
        (await visitor.get(path))["x-request-id"] for path in ("/v1/x", "/v1/x", "/v1/models", "/v1/chat/completions")
    }
    assert len(ids) == 4


async def test_the_documentation_describes_the_request(visitor: AsyncClient) -> None:
    document = (await visitor.get("/v1/openapi.json")).json()
    operation = document["paths"]["/v1/chat/completions"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["top_p"] == {"type": "number", "minimum": 0, "maximum": 1}
    assert operation["security"]
    assert set(document["paths"]) >= {"/v1/models", "/v1/models/{model}", "/v1/chat/completions"}


async def test_the_documentation_loads_nothing_from_elsewhere(visitor: AsyncClient) -> None:
    response = await visitor.get("/v1/docs")
    assert response.status_code == 200
    assert b"//" not in response.content
    assert b'"validatorUrl": null' in response.content


def test_every_route_is_exempt_from_csrf() -> None:
    patterns, _, _ = api.urls
    views = [
        pattern.callback
        for pattern in patterns
        if "docs" not in str(pattern.pattern) and "openapi" not in str(pattern.pattern)
    ]
    assert views
    assert all(getattr(view, "csrf_exempt", False) for view in views)


async def test_synchronous_views_work_as_well() -> None:
    """Reports are written with the ORM: their views run in a thread."""
    wire, router = Wire(urls_namespace="sync"), Router()

    @router.get("/thread")
    def thread(request: HttpRequest) -> str:
        return threading.current_thread().name

    wire.add_router("", router)
    (view,) = [pattern.callback for pattern in wire.urls[0] if pattern.name == "thread"]
    request = HttpRequest()
    request.method = "GET"
    response = await view(request)
    assert response.status_code == 200
    assert json.loads(response.content) != threading.current_thread().name
