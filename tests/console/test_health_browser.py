"""An admin takes a deployment out of rotation and puts it back, in a real browser; the server obeys."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from playwright.sync_api import BrowserContext, expect

from tenants.models import Tenant
from tenants.services import issue_key
from tests.console import test_browser
from tests.console.test_browser import ask, context, faults, in_a_thread, server, sign_in
from tests.servers import RunningServer

__all__ = ["context", "faults", "server"]

pytestmark = test_browser.pytestmark
PATIENCE_S = 90.0


def until(holds: Callable[[], bool]) -> None:
    by = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < by
        time.sleep(0.05)


def test_a_deployment_is_taken_out_and_put_back(
    server: RunningServer, context: BrowserContext, faults: list[str]
) -> None:
    made: list[Any] = []
    in_a_thread(
        lambda: made.append(
            issue_key(
                tenant=Tenant.objects.get(), name="shop", expires_at=None, allowed_models=["*"], created_by=None
            )
        )
    )
    _, secret = made[0]
    assert ask(server, secret).status_code == 200
    page = context.new_page()
    sign_in(page)
    page.locator('a[href="/admin/failover/deploymenthealth/"]').first.click()
    row = page.locator("#result_list tbody tr")
    expect(row).to_contain_text("in rotation", ignore_case=True)
    row.get_by_role("link").first.click()
    expect(page.get_by_text("Nothing has happened to it")).to_be_visible()

    page.get_by_role("link", name="Take out of rotation").click()
    expect(page.get_by_text("acme-echo has no other deployment in rotation")).to_be_visible()
    page.get_by_label("Reason").fill("new credentials")
    page.get_by_role("button", name="Take out of rotation").click()
    expect(page.get_by_text("alice: new credentials").first).to_be_visible()
    until(lambda: ask(server, secret).status_code == 503)
    page.goto("/admin/")
    expect(page.locator("#unwell")).to_contain_text("taken out by alice, new credentials")

    page.locator("#unwell").get_by_role("link").click()
    page.get_by_role("link", name="Put back").click()
    page.get_by_role("button", name="Put back").click()
    expect(page.locator(".cf-table tbody tr")).to_have_count(2)
    until(lambda: ask(server, secret).status_code == 200)
    assert faults == []
