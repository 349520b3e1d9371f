"""The admin's day in a real browser, against the real server: a key's whole life.

Skipped where there is no Chromium, but never on CI.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from django.contrib.auth.models import User
from django.db import connections
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

from gateway.catalogue.apply import apply
from tests.billing.books import settle_rollups
from tests.servers import RunningServer, running_server

CHROMIUM = os.environ.get("CHROMIUM") or next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
CATALOGUE = """
providers: [{name: echo, protocol: echo}]
models:
  - id: acme-echo
    deployments: [{provider: echo}]
    prices: [{effective_from: 2026-01-01, currency: USD, input: "0.15", output: "0.60"}]
tenants: [{slug: acme, name: Acme, models: ["acme-*"]}]
"""
PASSWORD = "alice-password"
WAIT_MS = 60_000

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(
        CHROMIUM is None and os.environ.get("CI") != "true",
        reason="no Chromium on this machine: install one, or name it in CHROMIUM",
    ),
]


@pytest.fixture
def server() -> Iterator[RunningServer]:
    User.objects.create_superuser("alice", password=PASSWORD)
    apply(CATALOGUE)
    with running_server() as server:
        yield server


@pytest.fixture
def faults() -> list[str]:
    """What went wrong in the browser: requests to elsewhere, failed ones, errors of scripts."""
    return []


@pytest.fixture
def context(server: RunningServer, faults: list[str]) -> Iterator[BrowserContext]:
    assert CHROMIUM is not None, "CI needs a Chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=str(server))
        context.set_default_timeout(WAIT_MS)
        expect.set_options(timeout=WAIT_MS)
        context.grant_permissions(["clipboard-read", "clipboard-write"])

        def look_at(response: Any) -> None:
            if response.status >= 400 and not response.url.endswith("/favicon.ico"):
                faults.append(f"{response.status} {response.url}")
            if urlsplit(response.url).hostname != "127.0.0.1":
                faults.append(f"from elsewhere: {response.url}")

        context.on("response", look_at)
        context.on("weberror", lambda error: faults.append(str(error.error)))
        yield context
        context.close()
        browser.close()


def sign_in(page: Page) -> None:
    page.goto("/admin/")
    page.get_by_label("Username").fill("alice")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("Requests today")).to_be_visible()


def ask(server: RunningServer, key: str) -> requests.Response:
    return requests.post(
        f"{server}/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json={"model": "acme-echo", "messages": [{"role": "user", "content": "hello"}]},
        timeout=60,
    )


def in_a_thread(work: Callable[[], None]) -> None:
    """Playwright runs a loop in the test's thread, and Django's ORM refuses to work beside one."""

    def whole() -> None:
        try:
            work()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as executor:
        executor.submit(whole).result()


def issue(page: Page) -> str:
    """Fill in the form, copy the secret by the button; returns what the clipboard has."""
    page.get_by_role("link", name="API keys").click()
    page.locator('a[href="/admin/tenants/apikey/add/"]').first.click()
    page.locator("#id_tenant + .select2").click()
    page.locator(".select2-search__field").fill("acm")
    page.locator(".select2-results__option", has_text="acme").click()
    page.get_by_label("Name").fill("web shop")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    copied: str = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#secret").input_value()
    return copied


def test_it_lives_through_the_life_of_a_key(
    server: RunningServer, context: BrowserContext, faults: list[str]
) -> None:
    page = context.new_page()
    sign_in(page)
    key = issue(page)
    assert re.fullmatch(r"sk-cf-[0-9A-Za-z]{12}-[0-9A-Za-z]{38}", key)
    page.reload()
    expect(page.get_by_text("cannot be shown again")).to_be_visible()
    assert key not in page.content()

    feed = context.new_page()
    feed.goto("/admin/live/")
    expect(feed.locator("#feed-state")).to_have_text("live")
    expect(feed.get_by_text("No requests yet.")).to_be_visible()

    answer = ask(server, key)
    assert answer.status_code == 200, answer.text

    row = feed.locator("#feed tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("acme-echo")
    expect(row).to_contain_text("web shop")
    expect(row).to_contain_text("completed")
    row.get_by_role("link", name="acme-echo").click()
    expect(feed.get_by_text("chat.completions")).to_be_visible()

    page.get_by_role("link", name="Usage records").click()
    record = page.locator("#result_list tbody tr")
    expect(record).to_have_count(1)
    expect(record).to_contain_text("acme-echo")

    in_a_thread(lambda: settle_rollups(120))
    page.get_by_role("link", name="Dashboard").click()
    expect(page.locator("#requests-today")).to_have_text("1")

    page.get_by_role("link", name="API keys").click()
    page.get_by_role("link", name="web shop").click()
    page.get_by_role("link", name="Revoke").click()
    expect(page.get_by_text("This cannot be undone.")).to_be_visible()
    assert ask(server, key).status_code == 200
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("refused from the next request on")).to_be_visible()

    refused = ask(server, key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert faults == []


def test_it_sends_a_test_request_from_the_browser(
    server: RunningServer, context: BrowserContext, faults: list[str]
) -> None:
    page = context.new_page()
    sign_in(page)
    page.get_by_role("link", name="Deployments").click()
    page.get_by_role("link", name="acme-echo").first.click()
    page.get_by_role("link", name="Send a test request").click()
    page.get_by_label("Prompt").fill("Is anybody there?")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#probe")).to_contain_text("It answered.")
    expect(page.locator("#probe")).to_contain_text("Is anybody there?")
    assert faults == []
