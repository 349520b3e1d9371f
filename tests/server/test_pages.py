"""/, /health and pages that are not there, through Django's middleware."""

from __future__ import annotations

import time

import pytest
from django.test import Client, override_settings
from django.urls import URLResolver
from django.urls.resolvers import RegexPattern
from pytest_django import Settings

from gateway import __version__
from gateway.server import readiness
from gateway.urls import routes


@pytest.fixture
def client() -> Client:
    return Client(raise_request_exception=False)


def test_the_root_names_the_endpoints(client: Client) -> None:
    for accept in ("*/*", "application/json", ""):
        answer = client.get("/", headers={"accept": accept}).json()
        assert answer["version"] == __version__
        assert "Counterfoil" in answer["message"]
        assert (
            answer["endpoints"]
            | {
                "chat": "/v1/chat/completions",
                "models": "/v1/models",
                "health": "/health",
            }
            == answer["endpoints"]
        )


def test_the_root_shows_browsers_a_page(client: Client) -> None:
    response = client.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert response.headers["content-type"].startswith("text/html")
    assert b"/v1/chat/completions" in response.content


def test_health_is_the_guides(client: Client) -> None:
    answer = client.get("/health").json()
    assert set(answer) == {"status", "timestamp"}
    assert answer["status"] == "healthy"
    assert isinstance(answer["timestamp"], int)
    assert abs(answer["timestamp"] - time.time()) < 60


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("get", "/nope", 404), ("post", "/chat/completions", 404), ("post", "/health", 405), ("post", "/", 405)],
)
def test_clients_outside_the_prefix_get_the_envelope_too(method: str, path: str, status: int) -> None:
    client = Client(raise_request_exception=False, enforce_csrf_checks=True)
    response = getattr(client, method)(path, headers={"accept": "*/*"})
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_browsers_get_a_page_for_what_is_not_there(client: Client) -> None:
    response = client.get("/nope", headers={"accept": "text/html,*/*;q=0.8"})
    assert response.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("path", ["/", "/health", "/livez", "/nope", "/v1/nope"])
def test_every_response_has_openais_headers(client: Client, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-request-id"].startswith("req_")
    assert headers["openai-processing-ms"].isdigit()
    assert headers["openai-version"] == "2020-10-01"


@pytest.mark.parametrize(
    ("path", "view"),
    [
        ("/api/v1/chat/completions", "guard"),
        ("/api/v1/nope", "unknown_route"),
        ("/api/usage/", "UsageView"),
        ("/api/nope", "UnknownView"),
    ],
)
def test_the_api_may_live_beside_the_finance_api(path: str, view: str) -> None:
    found = URLResolver(RegexPattern(r"^/"), routes("api/v1")).resolve(path).func
    assert getattr(found, "cls", found).__name__ == view


def test_it_never_redirects_for_a_slash(client: Client) -> None:
    assert client.get("/health/").status_code == 404
    assert client.post("/v1/models/x/", content_type="application/json").status_code != 301


def test_people_who_forget_the_slash_find_the_admin(client: Client) -> None:
    assert client.get("/admin").headers["location"] == "/admin/"


@pytest.mark.parametrize("path", ["/v1/nope", "/v1/models", "/v1"])
def test_a_foreign_host_is_refused_in_the_envelope(client: Client, settings: Settings, path: str) -> None:
    settings.ALLOWED_HOSTS = ["api.example"]
    response = client.get(path, headers={"host": "evil.example"})
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
def test_whoever_asks_how_we_are_may_ask_by_address(
    client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """As the image's own health check does, a load balancer, or Kubernetes."""

    async def nothing() -> list[str]:
        return []

    monkeypatch.setattr(readiness, "reasons", nothing)
    settings.ALLOWED_HOSTS = ["api.example"]
    assert client.get(path, headers={"host": "10.1.2.3:8000"}).status_code == 200
    assert client.get("/", headers={"host": "10.1.2.3:8000"}).status_code == 400


@pytest.mark.parametrize("debug", [True, False])
def test_debug_pages_do_not_reach_the_api(client: Client, debug: bool) -> None:
    with override_settings(DEBUG=debug):
        response = client.get("/v1/nope/at/all")
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]["message"] == "Invalid URL (GET /v1/nope/at/all)"
