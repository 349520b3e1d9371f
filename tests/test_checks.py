"""Every system check: silent when all is well, and what it says when not."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core import checks
from pytest_django.fixtures import Settings

from gateway import environment
from gateway.catalogue.models import Provider


def found(*, deploy: bool = False, databases: list[str] | None = None) -> dict[str, checks.CheckMessage]:
    messages = checks.run_checks(include_deployment_checks=deploy, databases=databases)
    return {message.id: message for message in messages if message.id and message.id.startswith("counterfoil.")}


def production(settings: Settings) -> None:
    settings.PRODUCTION = True
    settings.ALLOWED_HOSTS = ["api.example.com"]


def test_the_default_is_in_order() -> None:
    assert found(deploy=True) == {}


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("FORMAT_ERROR_STATUS", 500, "counterfoil.E003"),
        ("ENCRYPTION_KEYS", ["not a key"], "counterfoil.E004"),
        ("CORS_ORIGINS", ["app.example.com"], "counterfoil.E006"),
        ("CORS_ORIGINS", ["https://app.example.com/"], "counterfoil.E006"),
        ("API_PREFIX", "/", "counterfoil.E007"),
        ("API_PREFIX", "/v1/{x}", "counterfoil.E007"),
        ("API_PREFIX", "/admin/v1", "counterfoil.E007"),
        ("API_KEYS", ["sk-short"], "counterfoil.W010"),
        ("API_KEYS", ["sk-long-enough-to-pass"] * 2, "counterfoil.W010"),
        ("KEY_PEPPER", "salt", "counterfoil.W014"),
    ],
)
def test_a_bad_setting_is_named_with_a_hint(name: str, value: Any, problem: str, settings: Settings) -> None:
    setattr(settings, name, value)
    messages = found()
    assert set(messages) == {problem}
    assert name in messages[problem].msg
    assert messages[problem].hint


def test_a_key_is_never_shown(settings: Settings) -> None:
    settings.API_KEYS = ["sk-short"]
    assert "sk-short" not in str(found()["counterfoil.W010"])


def test_unreadable_values_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "problems", [("PORT", "'x' is not a whole number")])
    assert found()["counterfoil.E001"].msg == "PORT: 'x' is not a whole number."


def test_in_production_secrets_hosts_and_stores_must_be_given(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    production(settings)
    settings.ALLOWED_HOSTS = []
    settings.MISSING_SECRETS = ["SECRET_KEY"]
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    monkeypatch.delenv("VALKEY_URL", raising=False)
    assert set(found(deploy=True)) == {f"counterfoil.{name}" for name in ["E002", "E005", "W011"]}


@pytest.mark.django_db
def test_one_role_for_everything_is_warned_of_in_production(settings: Settings) -> None:
    """Tests run as the owner of the tables."""
    assert found(databases=["default"]) == {}
    settings.PRODUCTION = True
    assert "counterfoil.W012" in found(databases=["default"])


@pytest.mark.django_db
def test_the_catalogue_is_looked_at_when_the_database_is(settings: Settings) -> None:
    assert found(databases=["default"]) == {}
    Provider.objects.create(name="acme-llm", credential="secret", base_url="https://llm.example/v1")
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    settings.DEFAULT_MODEL = "acme-chat"
    assert set(found(databases=["default"])) == {"counterfoil.E008", "counterfoil.W013"}
