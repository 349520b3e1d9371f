"""Test connection, and send a test request: against a scripted provider."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.test import Client

from gateway.catalogue.models import Deployment, Model, Provider
from gateway.console import probes
from gateway.ledger.models import UsageRecord
from gateway.upstreams import addresses
from tests.upstream import Upstream
from tests.upstream_scripts import Answer, error
from tests.upstreams.fakes.spoken import FAKES, MODELS

SECRET = "sk-of-the-provider"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(autouse=True)
def _loopback(upstream: Upstream) -> Iterator[None]:
    upstream.reset()
    before = addresses.rules()
    addresses.configure(allow_private=False, allow_loopback=True)
    yield
    addresses.configure(allow_private=before.allow_private, allow_loopback=before.allow_loopback)


@pytest.fixture
def deployment(db: None, upstream: Upstream) -> Deployment:
    provider = Provider.objects.create(name="acme-llm", base_url=upstream.url, credential=SECRET, connect_timeout_s=2)
    model = Model.objects.create(public_id="acme-chat")
    return Deployment.objects.create(model=model, provider=provider, upstream_model="acme-chat-2026-01")


def text_of(response: Any) -> str:
    assert response.status_code == 200
    return str(response.content.decode())


def connect(browser: Client, deployment: Deployment) -> str:
    return text_of(browser.post(f"/admin/catalogue/provider/{deployment.provider_id}/test/"))


def send(browser: Client, deployment: Deployment, prompt: str = "hello") -> str:
    return text_of(browser.post(f"/admin/catalogue/deployment/{deployment.pk}/test/", {"prompt": prompt}))


class Directory(ThreadingHTTPServer):
    """A provider's list of models, or what stands in its place."""

    answer = (200, '{"object": "list", "data": [{"id": "acme-chat-2026-01"}, {"id": "<b>other</b>"}]}')
    asked: list[tuple[str, str | None]]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []


class Handler(BaseHTTPRequestHandler):
    server: Directory

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        status, text = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def directory(deployment: Deployment) -> Iterator[Directory]:
    with Directory() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        Provider.objects.update(base_url=f"http://127.0.0.1:{server.server_port}/v1")
        yield server
        server.shutdown()
        thread.join()


def test_it_connects(browser: Client, deployment: Deployment, directory: Directory) -> None:
    page = connect(browser, deployment)
    assert "It answers and lists 2 models." in page and " ms." in page
    assert "acme-chat-2026-01" in page and "&lt;b&gt;other" in page
    assert directory.asked == [("/v1/models", f"Bearer {SECRET}")]
    assert SECRET not in page


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (401, f"Incorrect API key: {SECRET}", "refused the credential (status 401)"),
        (403, f"Incorrect API key: {SECRET}", "refused the credential (status 403)"),
        (404, "not here", "does not list its models (status 404)"),
        (200, "<html>", "no list of models (status 200)"),
        (200, "[1]", "no list of models (status 200)"),
        (200, '{"data": [null, {"id": 7}]}', "no list of models (status 200)"),
        (302, "", "no list of models (status 302)"),
        (500, "broken", "no list of models (status 500)"),
    ],
)
def test_it_says_what_is_wrong(
    browser: Client, deployment: Deployment, directory: Directory, status: int, text: str, expected: str
) -> None:
    directory.answer = (status, text)
    page = connect(browser, deployment)
    assert expected in page
    assert SECRET not in page


def test_it_says_that_nobody_is_there(browser: Client, deployment: Deployment) -> None:
    Provider.objects.update(base_url="http://127.0.0.1:9/v1")
    page = connect(browser, deployment)
    assert "could not be reached" in page
    assert "ClientConnectorError" in page


def test_it_has_nothing_to_connect_to_for_echo(browser: Client, deployment: Deployment) -> None:
    Provider.objects.update(protocol="echo")
    assert "Echo answers by itself" in connect(browser, deployment)
    assert "hello echo" in send(browser, deployment, "hello echo")


def test_it_sends_a_request_past_the_books(browser: Client, deployment: Deployment, upstream: Upstream) -> None:
    upstream.script("acme-chat-2026-01", Answer("Hello to you, too."))
    page = send(browser, deployment, "Say <hello>.")

    assert "Hello to you, too." in page and "It answered." in page
    body = upstream.served[-1].body
    assert (body["model"], body["messages"]) == ("acme-chat-2026-01", [{"role": "user", "content": "Say <hello>."}])
    assert not UsageRecord.objects.exists()


def test_it_shows_the_cause_of_a_failure(browser: Client, deployment: Deployment, upstream: Upstream) -> None:
    upstream.queue(error(401, f"bad key {SECRET}"))
    page = send(browser, deployment)
    assert "refused the request" in page
    assert "status 401" in page and SECRET not in page


def test_it_does_not_wait_for_ever(
    browser: Client, deployment: Deployment, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "LONGEST_SECONDS", 0.2)
    upstream.script("acme-chat-2026-01", Answer("late", delay=30))
    page = send(browser, deployment)
    assert "did not answer in time" in page or "No answer within" in page


def test_it_asks_for_a_prompt(browser: Client, deployment: Deployment, upstream: Upstream) -> None:
    before = len(upstream.served)
    assert "This field is required" in send(browser, deployment, " ")
    assert len(upstream.served) == before
    assert "Say hello in one short sentence." in text_of(
        browser.get(f"/admin/catalogue/deployment/{deployment.pk}/test/")
    )


@pytest.mark.parametrize("protocol", ["azure", "anthropic", "gemini"])
def test_it_tries_every_protocol(browser: Client, deployment: Deployment, protocol: str) -> None:
    with FAKES[protocol]() as fake:
        provider, secret = deployment.provider, fake.key
        provider.protocol, provider.base_url, provider.credential = protocol, fake.url, secret
        provider.save()
        Deployment.objects.update(upstream_model=MODELS[protocol])
        assert "It answers and lists" in connect(browser, deployment)
        page = send(browser, deployment)
        assert "Hello there." in page and secret not in page
        provider.credential = "wrong"
        provider.save()
        assert "refused the credential" in connect(browser, deployment)


@pytest.mark.parametrize(("protocol", "end"), [("azure", "/openai/deployments/chat-prod"), ("gemini", "/models")])
def test_a_base_url_that_leads_nowhere_is_no_connection(
    browser: Client, deployment: Deployment, protocol: str, end: str
) -> None:
    with FAKES[protocol]() as fake:
        provider = deployment.provider
        provider.protocol, provider.base_url, provider.credential = protocol, fake.url + end, fake.key
        provider.save()
        assert "not at this base URL" in connect(browser, deployment)
