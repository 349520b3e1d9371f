"""/metrics on the main port: only where there is a token, and only for whoever has it."""

from __future__ import annotations

import gzip

import pytest
from django.test import Client
from pytest_django.fixtures import Settings

from gateway.telemetry.slots import Slots
from tests.telemetry.samples import value

TOKEN = "a-token-for-the-scraper"
RIGHT = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def client(fresh: Slots) -> Client:
    return Client(raise_request_exception=False, enforce_csrf_checks=True)


@pytest.mark.parametrize("method", ["get", "head", "post"])
def test_without_the_setting_it_is_an_unknown_url(client: Client, method: str) -> None:
    found = getattr(client, method)("/metrics", headers=RIGHT)
    unknown = getattr(client, method)("/nowhere", headers=RIGHT)
    assert found.status_code == unknown.status_code == 404
    assert found.content.replace(b"/metrics", b"/nowhere") == unknown.content


def test_with_the_token_it_is_the_page(client: Client, settings: Settings) -> None:
    settings.METRICS_TOKEN = TOKEN
    response = client.get("/metrics", headers=RIGHT)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert response.headers["cache-control"] == "no-store"
    assert value(response.content.decode(), "counterfoil_processes") == 1
    openmetrics = client.get("/metrics", headers={**RIGHT, "accept": "application/openmetrics-text;version=1.0.0"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    zipped = client.get("/metrics", headers={**RIGHT, "accept-encoding": "gzip"})
    assert gzip.decompress(zipped.content).startswith(b"# HELP")
    assert client.head("/metrics", headers=RIGHT).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": TOKEN},
        {"authorization": "Bearer \u00e9"},
    ],
)
def test_without_the_token_it_is_a_401(client: Client, settings: Settings, headers: dict[str, str]) -> None:
    settings.METRICS_TOKEN = TOKEN
    for method in (client.get, client.post):
        response = method("/metrics", headers=headers)
        assert response.status_code == 401
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert TOKEN not in response.content.decode()


def test_it_is_only_read(client: Client, settings: Settings) -> None:
    settings.METRICS_TOKEN = TOKEN
    for method in (client.post, client.put, client.delete):
        response = method("/metrics", headers=RIGHT)
        assert response.status_code == 405
        assert response.headers["allow"] == "GET, HEAD"
