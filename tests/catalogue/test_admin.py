"""The catalogue in the admin: credentials go in and never out, amounts are exact, what is used stays."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from gateway.catalogue.models import Deployment, Model, Price, Provider
from tenants.models import Tenant

SECRET = "sk-of-the-provider"
JANUARY = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _loopback(settings: Any) -> None:
    settings.UPSTREAM_ALLOW_LOOPBACK = True


@pytest.fixture
def provider(db: None) -> Provider:
    return Provider.objects.create(name="acme-llm", base_url="http://127.0.0.1:9100/v1", credential=SECRET)


@pytest.fixture
def model(provider: Provider) -> Model:
    found = Model.objects.create(public_id="acme-chat")
    Deployment.objects.create(model=found, provider=provider, upstream_model="acme-chat-2026-01")
    return found


def provider_form(**fields: Any) -> dict[str, Any]:
    return {
        "name": "acme-llm",
        "protocol": "openai",
        "base_url": "http://127.0.0.1:9100/v1",
        "new_credential": "",
        "connect_timeout_s": "5",
        "read_timeout_s": "600",
        "enabled": "on",
        **fields,
    }


def price_form(model: Model, **fields: Any) -> dict[str, Any]:
    return {
        "model": model.pk,
        "side": "charge",
        "tenant": "",
        "provider": "",
        "currency": "USD",
        "effective_from_0": "2026-01-01",
        "effective_from_1": "00:00",
        "input": "0.15",
        "cached_input": "",
        "cache_write": "",
        "output": "0.6",
        "reasoning": "",
        "request": "",
        **fields,
    }


def text_of(response: Any) -> str:
    return str(response.content.decode())


# ---- providers ----


def test_it_takes_a_credential_and_never_shows_it(browser: Client, db: None) -> None:
    response = browser.post("/admin/catalogue/provider/add/", provider_form(new_credential=SECRET))
    assert response.status_code == 302

    provider = Provider.objects.get()
    assert provider.credential == SECRET
    pages = [f"/admin/catalogue/provider/{provider.pk}/{page}/" for page in ("change", "history", "test", "delete")]
    for page in ["/admin/catalogue/provider/", *pages]:
        assert SECRET not in text_of(browser.get(page))
    assert "One is stored." in text_of(browser.get(pages[0]))


def test_it_keeps_replaces_and_removes_a_credential(browser: Client, provider: Provider) -> None:
    page = f"/admin/catalogue/provider/{provider.pk}/change/"

    browser.post(page, provider_form(read_timeout_s="30"))
    assert (Provider.objects.get().credential, Provider.objects.get().read_timeout_s) == (SECRET, 30)
    browser.post(page, provider_form(new_credential="another"))
    assert Provider.objects.get().credential == "another"
    refused = browser.post(page, provider_form(new_credential="third", remove_credential="on"))
    assert "Either give a new credential or remove" in text_of(refused) and "third" not in text_of(refused)
    browser.post(page, provider_form(remove_credential="on"))
    assert Provider.objects.get().credential == ""


def test_it_sends_no_stored_credential_to_a_new_host(browser: Client, provider: Provider) -> None:
    page = f"/admin/catalogue/provider/{provider.pk}/change/"
    elsewhere = "http://127.0.0.1:9200/v1"

    assert "is for another host" in text_of(browser.post(page, provider_form(base_url=elsewhere)))
    assert Provider.objects.get().base_url == provider.base_url
    browser.post(page, provider_form(base_url=elsewhere, new_credential="theirs"))
    assert (Provider.objects.get().base_url, Provider.objects.get().credential) == (elsewhere, "theirs")
    browser.post(page, provider_form(base_url="http://127.0.0.1:9200/v2"))
    assert Provider.objects.get().base_url.endswith("/v2")


@pytest.mark.parametrize("url", ["", "ftp://x/v1", "http://169.254.169.254/v1", "http://user:pw@example.com/v1"])
def test_it_refuses_an_address_that_must_not_be_called(browser: Client, url: str) -> None:
    assert browser.post("/admin/catalogue/provider/add/", provider_form(base_url=url)).status_code == 200
    assert not Provider.objects.exists()


def test_it_encrypts_credentials_anew_with_the_first_key(provider: Provider, settings: Any) -> None:
    def stored() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SELECT credential FROM catalogue_provider")
            return str(cursor.fetchone()[0])

    before = stored()
    new_key = "bmV3LWtleS1uZXcta2V5LW5ldy1rZXktbmV3LWtleSE="
    settings.ENCRYPTION_KEYS = [new_key, *settings.ENCRYPTION_KEYS]
    call_command("rotate_credentials")
    settings.ENCRYPTION_KEYS = [new_key]

    assert stored() != before and SECRET not in stored()
    assert Provider.objects.get().credential == SECRET


# ---- models and deployments ----


def test_it_refuses_politely_to_delete_what_usage_is_booked_on(browser: Client, model: Model) -> None:
    deployment = Deployment.objects.get()
    for page in (f"model/{model.pk}", f"provider/{deployment.provider_id}", f"deployment/{deployment.pk}"):
        response = browser.post(f"/admin/catalogue/{page}/delete/", {"post": "yes"}, follow=True)
        assert response.status_code == 200
        assert "cannot be deleted" in text_of(response)
    assert Model.objects.exists() and Provider.objects.exists() and Deployment.objects.exists()


def model_form(**fields: Any) -> dict[str, Any]:
    return {
        "public_id": "acme-code",
        "aliases": "",
        "owned_by": "acme",
        "context_window": "",
        "max_output_tokens": "",
        "capabilities": "vision\ntools",
        "reasoning_field": "reasoning",
        "refuse_unpriced": "on",
        "enabled": "on",
        "deployments-TOTAL_FORMS": "1",
        "deployments-INITIAL_FORMS": "0",
        "deployments-0-provider": Provider.objects.get().pk,
        "deployments-0-upstream_model": "acme-code-1",
        "deployments-0-priority": "0",
        "deployments-0-weight": "1",
        "deployments-0-enabled": "on",
        **fields,
    }


def test_it_adds_a_model_with_its_deployment(browser: Client, provider: Provider) -> None:
    response = browser.post("/admin/catalogue/model/add/", model_form(aliases="code, best:1"))
    assert response.status_code == 302
    model = Model.objects.get()
    assert (model.public_id, model.aliases, model.capabilities) == (
        "acme-code",
        ["code", "best:1"],
        ["vision", "tools"],
    )
    assert model.deployments.get().upstream_model == "acme-code-1"


def test_it_gives_no_name_to_two_models(browser: Client, model: Model) -> None:
    for fields in ({"aliases": "acme-chat"}, {"public_id": "acme-chat"}, {"aliases": "acme-code"}):
        assert browser.post("/admin/catalogue/model/add/", model_form(**fields)).status_code == 200
    assert Model.objects.count() == 1
    text = text_of(browser.post("/admin/catalogue/model/add/", model_form(aliases="acme-chat")))
    assert "already leads to the model acme-chat" in text


@pytest.mark.parametrize(
    ("fallbacks", "said"),
    [
        ("acme-code", "acme-code cannot stand in for itself"),
        ("acme-huge", "There is no model &#x27;acme-huge&#x27;"),
    ],
)
def test_it_says_which_fallback_is_none(browser: Client, model: Model, fallbacks: str, said: str) -> None:
    text = text_of(browser.post("/admin/catalogue/model/add/", model_form(fallbacks=fallbacks)))
    assert said in text
    assert Model.objects.count() == 1


def test_it_says_whether_a_model_can_be_called(browser: Client, model: Model) -> None:
    model.deployments.update(enabled=False)
    assert "none: cannot be called" in text_of(browser.get("/admin/catalogue/model/"))
    Model.objects.filter(pk=model.pk).update(fallbacks=["acme-small"])
    assert "none: left to its fallbacks" in text_of(browser.get("/admin/catalogue/model/"))


def test_it_completes_names_while_one_types(browser: Client, model: Model, acme: Tenant) -> None:
    asked = {"app_label": "catalogue", "model_name": "price", "term": "acme"}
    for field, name in (("model", "acme-chat"), ("provider", "acme-llm"), ("tenant", "acme")):
        response = browser.get("/admin/autocomplete/", asked | {"field_name": field})
        assert [row["text"] for row in json.loads(response.content)["results"]] == [name]


# ---- prices ----


def test_it_converts_amounts_exactly_both_ways(browser: Client, model: Model) -> None:
    form = price_form(model, input="0.1", cached_input="0.000000001", output="1234567.89", request="0.5")
    assert browser.post("/admin/catalogue/price/add/", form).status_code == 302

    price = Price.objects.get()
    assert (price.input, price.cached_input, price.output) == (10**8, 1, 1_234_567_890_000_000)
    assert (price.cache_write, price.reasoning, price.request) == (None, None, 5 * 10**8)
    assert price.effective_from == JANUARY
    page = text_of(browser.get(f"/admin/catalogue/price/{price.pk}/change/"))
    for amount in ("0.1", "0.000000001", "1234567.89", "0.5"):
        assert f'value="{amount}"' in page
    assert "1234567.89" in text_of(browser.get("/admin/catalogue/price/"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": "cheap"}, "is not a decimal number"),
        ({"input": "-1"}, "This cannot be negative."),
        ({"input": "0.0000000001"}, "more than nine decimal places"),
        ({"input": ""}, "This field is required."),
        ({"currency": "XXX"}, "is not one of the available choices"),
    ],
)
def test_it_refuses_a_bad_amount(browser: Client, model: Model, fields: dict[str, str], message: str) -> None:
    assert message in text_of(browser.post("/admin/catalogue/price/add/", price_form(model, **fields)))
    assert not Price.objects.exists()


def test_it_keeps_tenants_and_providers_on_their_sides(browser: Client, model: Model, acme: Tenant) -> None:
    provider = Provider.objects.get()
    for fields in ({"provider": provider.pk}, {"side": "cost", "tenant": acme.pk}):
        assert browser.post("/admin/catalogue/price/add/", price_form(model, **fields)).status_code == 200
    assert not Price.objects.exists()


def test_it_changes_a_price_that_was_not_used_and_shows_one_that_was(browser: Client, model: Model) -> None:
    price = Price.objects.create(
        model=model, effective_from=JANUARY, currency="USD", input=150_000_000, output=600_000_000
    )
    page = f"/admin/catalogue/price/{price.pk}/change/"
    assert browser.post(page, price_form(model, input="0.2")).status_code == 302
    assert Price.objects.get().input == 200_000_000

    Price.objects.update(first_used_at=timezone.now())
    shown = text_of(browser.get(page))
    assert "Add a row with a later effective_from" in shown
    assert 'name="input"' not in shown and "0.2" in shown and "200000000" not in shown
    assert browser.post(page, price_form(model, input="0.3")).status_code == 403
    assert Price.objects.get().input == 200_000_000
    response = browser.post(f"/admin/catalogue/price/{price.pk}/delete/", {"post": "yes"}, follow=True)
    assert "cannot be deleted" in text_of(response) and Price.objects.exists()


# ---- for all ----


def queries(browser: Client, path: str) -> int:
    browser.get(path)
    with CaptureQueriesContext(connection) as captured:
        assert browser.get(path).status_code == 200
    return len(captured)


def test_it_lists_many_with_as_many_queries_as_one(browser: Client, model: Model, acme: Tenant) -> None:
    provider = Provider.objects.get()
    Price.objects.create(model=model, effective_from=JANUARY, currency="USD", input=1, output=1)
    paths = [f"/admin/catalogue/{name}/" for name in ("provider", "model", "deployment", "price")]
    few = {path: queries(browser, path) for path in paths}
    for number in range(12):
        other = Model.objects.create(public_id=f"m{number}")
        Deployment.objects.create(model=other, provider=provider, upstream_model="u")
        Provider.objects.create(name=f"p{number}", protocol="echo")
        at = JANUARY + timedelta(days=number)
        Price.objects.create(model=other, tenant=acme, effective_from=at, currency="USD", input=1, output=1)

    assert {path: queries(browser, path) for path in paths} == few
    assert max(few.values()) <= 9


def test_it_honours_permissions(finance: User, model: Model) -> None:
    client = Client()
    client.force_login(finance)
    deployment = Deployment.objects.get()
    pages = [
        f"provider/{deployment.provider_id}/test/",
        f"deployment/{deployment.pk}/test/",
        "price/add/",
        "provider/",
    ]
    assert [client.get(f"/admin/catalogue/{page}").status_code for page in pages] == [403] * 4
    assert [client.post(f"/admin/catalogue/{page}").status_code for page in pages[:2]] == [403] * 2
    finance.user_permissions.add(Permission.objects.get(codename="view_provider"))
    assert client.get("/admin/catalogue/provider/").status_code == 200
    assert client.get(f"/admin/catalogue/{pages[0]}").status_code == 403
