# ruff: noqa: E501
"""`apply`: what a file states is made so, once, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from gateway.catalogue.apply import Refused, apply
from gateway.catalogue.models import CatalogueVersion, Deployment, Model, Price, Provider
from tenants.models import Tenant

pytestmark = pytest.mark.django_db

SECRET = "sk-of-the-provider"
ENVIRON = {"ACME_LLM_KEY": SECRET}
ACME = """\
providers:
  - {name: acme-llm, protocol: openai, base_url: "http://127.0.0.1:9100/v1", credential: $ACME_LLM_KEY}
models:
  - id: acme-chat
    context_window: 128000
    max_output_tokens: 16000
    deployments: [{provider: acme-llm, upstream_model: acme-chat-2026-01, priority: 0, weight: 1}]
    prices:      # per 1,000,000 units, decimal strings
      - {effective_from: 2026-01-01, currency: USD, input: "0.15", cached_input: "0.075", output: "0.60"}
      - {side: cost, effective_from: 2026-01-01, currency: USD, input: "0.10", cached_input: "0.05", output: "0.40"}
tenants:
  - {slug: acme, name: Acme, timezone: Europe/Berlin, currency: USD, models: ["acme-*"]}
"""


@pytest.fixture(autouse=True)
def _loopback(settings: Any) -> None:
    settings.UPSTREAM_ALLOW_LOOPBACK = True


def state() -> list[Any]:
    kinds = (Provider, Model, Deployment, Price, Tenant)
    return [list(kind.objects.order_by("pk").values()) for kind in kinds]  # type: ignore[attr-defined]


def version() -> int:
    return CatalogueVersion.objects.get().version


def problems_of(text: str) -> list[str]:
    before = state()
    with pytest.raises(Refused) as refused:
        apply(text, environ=ENVIRON)
    assert state() == before
    return [f"{problem.line}: {problem.text}" for problem in refused.value.problems]


def test_it_makes_what_the_file_states() -> None:
    report = apply(ACME, environ=ENVIRON)

    assert report.summary() == "6 created, 0 changed, 0 unchanged."
    provider = Provider.objects.get()
    assert (provider.name, provider.protocol, provider.base_url) == ("acme-llm", "openai", "http://127.0.0.1:9100/v1")
    assert provider.credential == SECRET
    model = Model.objects.get()
    assert (model.public_id, model.context_window, model.max_output_tokens) == ("acme-chat", 128000, 16000)
    deployment = model.deployments.get()
    assert (deployment.provider, deployment.upstream_model, deployment.enabled) == (
        provider,
        "acme-chat-2026-01",
        True,
    )
    charge, cost = Price.objects.order_by("side")
    assert (charge.side, charge.input, charge.cached_input, charge.output) == (
        "charge",
        150_000_000,
        75_000_000,
        600_000_000,
    )
    assert (cost.side, cost.input, cost.cached_input, cost.output) == ("cost", 100_000_000, 50_000_000, 400_000_000)
    assert charge.effective_from == datetime(2026, 1, 1, tzinfo=UTC)
    assert (charge.cache_write, charge.reasoning, charge.request) == (None, None, 0)
    tenant = Tenant.objects.get()
    assert (tenant.slug, tenant.timezone, tenant.allowed_models) == ("acme", "Europe/Berlin", ["acme-*"])


def test_it_has_nothing_to_do_the_second_time_and_writes_nothing() -> None:
    apply(ACME, environ=ENVIRON)
    before, at = state(), version()

    report = apply(ACME, environ=ENVIRON)

    assert report.empty
    assert report.summary() == "Nothing to do: 6 unchanged."
    assert (state(), version()) == (before, at)
    assert Provider.history.count() == 1


def test_it_changes_what_differs_and_leaves_what_is_not_mentioned() -> None:
    apply(ACME, environ=ENVIRON)
    Model.objects.update(owned_by="somebody")

    report = apply(ACME.replace("128000", "64000").replace("name: Acme", "name: Acme Ltd"), environ=ENVIRON)

    assert "    context_window: 128000 -> 64000" in report.lines()
    assert "    name: Acme -> Acme Ltd" in report.lines()
    assert report.summary() == "0 created, 2 changed, 4 unchanged."
    assert Model.objects.get().owned_by == "somebody"


def test_it_changes_nothing_on_a_dry_run() -> None:
    report = apply(ACME, environ=ENVIRON, dry_run=True)
    assert report.summary() == "6 created, 0 changed, 0 unchanged."
    assert not any(state())


def test_it_never_shows_a_secret() -> None:
    shown = [*apply(ACME, environ=ENVIRON).lines()]
    shown += apply(ACME, environ={"ACME_LLM_KEY": "another-secret"}).lines()

    assert "    credential: •••• -> ••••" in shown
    assert not any(SECRET in line or "another-secret" in line for line in shown)
    assert SECRET not in str(Provider.history.values_list())
    assert Provider.objects.get().credential == "another-secret"


def test_it_disables_a_deployment_that_the_list_no_longer_names() -> None:
    apply(ACME, environ=ENVIRON)
    moved = ACME.replace("acme-chat-2026-01", "acme-chat-2026-02")

    report = apply(moved, environ=ENVIRON)

    enabled = dict(Deployment.objects.values_list("upstream_model", "enabled"))
    assert enabled == {"acme-chat-2026-01": False, "acme-chat-2026-02": True}
    assert "    enabled: true -> false" in report.lines()
    assert apply(moved, environ=ENVIRON).empty
    assert apply(ACME, environ=ENVIRON).summary() == "0 created, 2 changed, 5 unchanged."


def test_it_corrects_a_price_that_was_not_used_and_refuses_one_that_was() -> None:
    apply(ACME, environ=ENVIRON)
    dearer = ACME.replace('"0.15"', '"0.20"')
    assert "    input: 0.15 -> 0.2" in apply(dearer, environ=ENVIRON).lines()

    Price.objects.filter(side="charge").update(first_used_at=timezone.now())

    (problem,) = problems_of(ACME)
    assert problem.startswith("9: This price has been used since ")
    assert problem.endswith("Add one with a later effective_from.")
    assert apply(dearer, environ=ENVIRON).empty
    later = dearer.replace("side: cost, effective_from: 2026-01-01", "effective_from: 2026-06-01T12:00:00+02:00")
    assert apply(later, environ=ENVIRON).summary() == "1 created, 0 changed, 5 unchanged."


def test_it_gives_a_tenant_prices_of_its_own() -> None:
    text = ACME.replace("USD, models", "EUR, models").replace('["acme-*"]}', '["acme-*"], prices: [OWN]}')
    own = '{model: acme-chat, effective_from: 2026-01-01, input: "1", output: "2", request: "0.000000001"}'
    apply(text.replace("OWN", own), environ=ENVIRON)

    price = Price.objects.get(tenant__slug="acme")
    assert (price.currency, price.side, price.input, price.request) == ("EUR", "charge", 10**9, 1)


def test_it_moves_an_alias_from_one_model_to_another() -> None:
    apply("models: [{id: one, aliases: [best]}, {id: two}]")
    apply("models: [{id: one, aliases: []}, {id: two, aliases: [best, great]}]")
    assert dict(Model.objects.values_list("public_id", "aliases")) == {"one": [], "two": ["best", "great"]}


def test_it_sets_the_other_fields_of_models_providers_and_tenants() -> None:
    apply(
        """
providers: [{name: e, protocol: echo, enabled: false, connect_timeout_s: 2, read_timeout_s: 30}]
models:
  - {id: "org/m:1", owned_by: org, capabilities: [vision], reasoning_field: both, refuse_unpriced: false,
     enabled: false, context_window: null}
tenants: [{slug: t, status: suspended, billing_contact: pay@example.com}]
"""
    )
    provider = Provider.objects.get()
    assert (provider.enabled, provider.connect_timeout_s, provider.read_timeout_s) == (False, 2, 30)
    model = Model.objects.get()
    assert (model.owned_by, model.capabilities, model.reasoning_field) == ("org", ["vision"], "both")
    assert (model.refuse_unpriced, model.enabled, model.context_window) == (False, False, None)
    tenant = Tenant.objects.get()
    assert (tenant.name, tenant.status, tenant.billing_contact) == ("t", "suspended", "pay@example.com")


REFUSALS: dict[str, tuple[str, str, str]] = {
    "an unknown field": ("context_window:", "contxt_window:", "5: A model has no field 'contxt_window'. Did you mean"),
    "an unknown section": ("tenants:", "tenant:", "11: The file has no field 'tenant'. Did you mean 'tenants'?"),
    "a field twice": ("timezone:", "name: A, timezone:", "12: 'name' is stated twice, first on line 12."),
    "a float for money": ('"0.15"', "0.15", "9: input: Amounts are quoted"),
    "a whole number for money": ('"0.15"', "1", '9: input: Amounts are quoted, since YAML would make a rounded float of them: "1".'),
    "a negative price": ('"0.15"', '"-0.15"', "9: input: A price cannot be negative: -0.15."),
    "too many places": ('"0.15"', '"0.1500000001"', "9: input: '0.1500000001' has more than nine decimal places."),
    "an amount in words": ('"0.15"', "cheap", "9: input: 'cheap' is not an amount, such as \"0.15\"."),
    "not a number": ('"0.15"', '"NaN"', "9: input: 'NaN' is not an amount"),
    "a huge amount": ('"0.15"', '"9999999999999"', "9: input: '9999999999999' is too large."),
    "no amount": ('output: "0.60"', "request: null", "9: A price needs 'output'."),
    "an unknown currency": ("currency: USD, models", "currency: UDS, models", "12: currency: 'UDS' is not an ISO 4217"),
    "a bad day": ("2026-01-01, currency: USD, input: \"0.15\"", '2026-02-30, currency: USD, input: "0.15"', "9: effective_from:"),
    "a moment without offset": ("2026-01-01, currency: USD, input: \"0.15\"", '"2026-02-01 10:00", currency: USD, input: "0.15"', "9: effective_from:"),
    "an unknown zone": ("Europe/Berlin", "Europe/Berlim", "12: timezone: 'Europe/Berlim' is not an IANA time zone"),
    "a bad slug": ("slug: acme", "slug: Acme Ltd", "12: slug:"),
    "a bad URL": ("http://127.0.0.1:9100/v1", "ftp://127.0.0.1/v1", "2: base_url:"),
    "a metadata address": ("http://127.0.0.1:9100/v1", "http://169.254.169.254/v1", "2: base_url:"),
    "no URL": (', base_url: "http://127.0.0.1:9100/v1"', "", "2: base_url: The protocol openai needs a base URL."),
    "an unknown protocol": ("protocol: openai", "protocol: smtp", "2: protocol: 'smtp' is not one of openai, azure, anthropic, gemini, echo."),
    "a variable that is not set": ("$ACME_LLM_KEY", "$OTHER", "2: credential: OTHER is not set in the environment."),
    "a secret in the file": ("$ACME_LLM_KEY", "sk-123", "2: credential: Secrets do not stand in this file"),
    "a negative window": ("128000", "-1", "5: context_window: Ensure this value is greater than or equal to 0."),
    "a fractional window": ("128000", "1.5", "5: context_window: '1.5' is not a whole number."),
    "an octal window": ("128000", "0200", "5: context_window: '0200' is not a whole number."),
    "text that YAML takes for something else": ("acme-chat-2026-01", "4.1", '7: upstream_model: YAML does not read 4.1 as text. Quote it: "4.1".'),
    "Norway": ("slug: acme", "slug: no", '12: slug: YAML does not read no as text. Quote it: "no".'),
    "yes for true": ("weight: 1", "enabled: yes", "7: enabled: 'yes' is neither true nor false."),
    "a missing provider": ("provider: acme-llm", "provider: other", "7: provider: There is no provider 'other'"),
    "a list for text": ("name: Acme", "name: [Acme]", "12: name: Expected text."),
    "text for a list": ('models: ["acme-*"]', "models: acme-*", "12: models: Expected a list"),
    "a mapping for a list": ("  - id: acme-chat", "    id: acme-chat", "4: Expected a list of models"),
    "an alias": ("$ACME_LLM_KEY", "*key", "2: This is not YAML: aliases (*name) are not used in this file."),
    "broken YAML": ("tenants:", "tenants: [", "12: This is not YAML:"),
    "a null character": ("name: Acme", r'name: "A\0"', "12: name: Text cannot hold"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_it_refuses(case: str) -> None:
    old, new, expected = REFUSALS[case]
    assert old in ACME
    found = problems_of(ACME.replace(old, new, 1))
    assert any(problem.startswith(expected) for problem in found), found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1: The file is empty."),
        ("- a", "1: Expected the fields of The file"),
        ("models: [{id: a}, {id: a}]", "1: This is a model that is stated already, on line 1."),
        ("models: [{id: a, aliases: [b]}, {id: c, aliases: [b]}]", "1: aliases: b already leads to the model"),
        ("models: [{id: a, aliases: [a]}]", "1: aliases: a is the model's id already."),
        ("models: [{id: 'a b'}]", "1: id: Letters, digits"),
        ("models: [{id: a, fallbacks: [a]}]", "1: fallbacks: a cannot stand in for itself."),
        ("models: [{id: a, fallbacks: [b]}]", "1: fallbacks: There is no model 'b'. Name models by their ids."),
        ("tenants: [{name: x}]", "1: A tenant needs 'slug'."),
        ("models: [{id: a, prices: [{provider: p, effective_from: 2026-01-01, currency: USD, input: '1', output: '1'}]}]",
         "1: provider: Only a price with side: cost"),
        ("models: [{id: a, prices: [{effective_from: 2026-01-01, currency: USD, input: '1', output: '1'},\n"
         " {side: charge, effective_from: 2026-01-01, currency: USD, input: '2', output: '1'}]}]",
         "2: This price is stated twice."),
        ("tenants: [{slug: t, prices: [{model: m, effective_from: 2026-01-01, input: '1', output: '1'}]}]",
         "1: model: There is no model 'm'"),
        ("[" * 5000, "1: The file is nested too deeply."),
        ("a: &a [x]\nb: &b [*a, *a]", "2: This is not YAML: aliases"),
        ("providers: [!!python/object/apply:os.system ['true']]", "1: Expected the fields of A provider"),
        ("\x07", "1: This is not YAML"),
    ],
)  # fmt: skip
def test_it_refuses_the_odd_file(text: str, expected: str) -> None:
    assert problems_of(text)[0].startswith(expected)


def test_it_says_everything_that_is_wrong_at_once() -> None:
    found = problems_of(ACME.replace("128000", "many").replace("Berlin", "Berlim").replace('"0.15"', "0.15"))
    assert [problem.partition(":")[0] for problem in found] == ["5", "9"]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ACME_LLM_KEY", SECRET)
    path = tmp_path / "acme.yaml"
    path.write_text(ACME)
    yield path


def run(*arguments: str) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    try:
        call_command("apply", *arguments, stdout=out, stderr=err)
    except CommandError as exc:
        err.write(str(exc))
    return out.getvalue(), err.getvalue()


def test_it_is_a_command_with_a_diff_on_stdout(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = run(str(file), "--dry-run")
    assert out.splitlines()[:2] == ["+ provider acme-llm", "    protocol: openai"]
    assert out.splitlines()[-2:] == ["6 created, 0 changed, 0 unchanged.", "Dry run: nothing was changed."]
    assert not err

    monkeypatch.setattr("sys.stdin", StringIO(ACME))
    assert run("-")[0].endswith("6 created, 0 changed, 0 unchanged.\n")
    assert run(str(file))[0].endswith("Nothing to do: 6 unchanged.\n")


def test_it_names_file_and_line_of_a_problem(file: Path) -> None:
    file.write_text(ACME.replace("weight", "wieght"))
    assert run(str(file)) == (
        "",
        f"{file}:7: A deployment has no field 'wieght'. Did you mean 'weight'?\n"
        f"Nothing was changed: 1 problem in {file}.",
    )
    assert run(str(file.with_name("missing.yaml")))[1].endswith("missing.yaml: No such file or directory")


@pytest.mark.parametrize("secret", ["sk-one\nsk-two", "sk-grün", "sk-\0"])
def test_it_takes_no_credential_that_no_header_can_hold(secret: str) -> None:
    with pytest.raises(Refused, match="ACME_LLM_KEY holds what no HTTP header can"):
        apply(ACME, environ={"ACME_LLM_KEY": secret})
