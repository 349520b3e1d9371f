"""An admin meets limits in a real browser: the form shows what makes sense, and a refusal explains itself."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import BrowserContext, expect

from gateway.limits.models import LimitRule
from tenants.models import Tenant
from tenants.services import issue_key
from tests.console import test_browser
from tests.console.test_browser import ask, context, faults, in_a_thread, server, sign_in
from tests.servers import RunningServer

__all__ = ["context", "faults", "server"]

pytestmark = test_browser.pytestmark


def test_the_form_shows_only_what_makes_sense(
    server: RunningServer, context: BrowserContext, faults: list[str]
) -> None:
    page = context.new_page()
    sign_in(page)
    page.goto("/admin/limits/limitrule/add/")
    expect(page.locator("#id_hold")).to_be_hidden()
    expect(page.locator("#id_tokens")).to_be_hidden()
    page.locator("#id_metric").select_option("tokens")
    expect(page.locator("#id_tokens")).to_be_visible()
    expect(page.locator("#id_floor")).to_be_hidden()
    page.locator("#id_on_shortage").select_option("fit")
    expect(page.locator("#id_floor")).to_be_visible()
    page.locator("#id_metric").select_option("in_flight")
    expect(page.locator("#id_per")).to_be_hidden()
    expect(page.locator("#id_floor")).to_be_hidden()
    page.locator("#id_metric").select_option("spend")
    expect(page.locator("#id_currency")).to_be_visible()
    page.locator("#id_per").select_option("fiscal_month")
    expect(page.locator("#id_fiscal_day")).to_be_visible()
    page.locator("#id_on_shortage").select_option("refuse")
    page.locator("#id_tenant + .select2").click()
    page.locator(".select2-search__field").fill("acm")
    page.locator(".select2-results__option", has_text="acme").click()
    page.locator("#id_amount").fill("12.50")
    page.get_by_role("button", name="Save", exact=True).click()
    row = page.locator("#result_list tbody tr")
    expect(row).to_contain_text("12.50 USD")
    row.get_by_role("link").first.click()
    page.get_by_role("link", name="Raise until").click()
    page.locator("#id_amount").fill("20")
    page.locator("#id_until_0").fill("2099-01-01")
    page.locator("#id_until_1").fill("00:00")
    page.get_by_role("button", name="Raise").click()
    expect(page.get_by_text("20.00 USD until 2099-01-01 00:00 UTC.").first).to_be_visible()
    assert faults == []


def test_a_refusal_is_explained_and_asked_for_beforehand(
    server: RunningServer, context: BrowserContext, faults: list[str]
) -> None:
    made: list[Any] = []

    def limit() -> None:
        tenant = Tenant.objects.get()
        made.append(issue_key(tenant=tenant, name="shop", expires_at=None, allowed_models=["*"], created_by=None))
        LimitRule.objects.create(tenant=tenant, metric="requests", per="day", amount=1)

    in_a_thread(limit)
    key, secret = made[0]
    assert ask(server, secret).status_code == 200
    refused = ask(server, secret)
    assert refused.status_code == 429

    page = context.new_page()
    sign_in(page)
    page.get_by_role("link", name="Explain a request").click()
    page.get_by_label("Request").fill(refused.headers["x-request-id"])
    page.get_by_role("button", name="Explain").click()
    expect(page.locator("#explanation")).to_contain_text("Refused: it did not fit into requests per day of acme.")

    page.goto(f"/admin/tenants/apikey/{key.pk}/change/")
    page.get_by_role("link", name="Would it be allowed?").last.click()
    page.get_by_label("Model").fill("acme-echo")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#simulation")).to_contain_text("No. It does not fit into requests per day of acme.")
    page.locator("#id_date").fill("2099-01-01")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#simulation")).to_contain_text("Yes. It fits into every limit.")
    assert faults == []
