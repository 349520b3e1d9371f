"""`issue_key` and `import_api_keys`, as a script sees them."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from tenants import keys
from tenants.models import APIKey, Tenant


def run(*arguments: str) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    call_command(*arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_it_prints_the_secret_alone_on_stdout(acme: Tenant) -> None:
    out, err = run("issue_key", "--tenant", "acme", "--name", "shop", "--models", "acme-*", "other")

    (secret,) = out.splitlines()
    key = APIKey.objects.get()
    assert keys.public_id_of(secret) == key.public_id
    assert key.allowed_models == ["acme-*", "other"]
    assert key.public_id in err and secret not in err


def test_it_takes_a_day_in_the_tenants_time_zone(acme: Tenant) -> None:
    run("issue_key", "--tenant", "acme", "--name", "shop", "--expires", "2099-07-01")
    expires_at = APIKey.objects.get().expires_at
    assert expires_at is not None and expires_at.isoformat() == "2099-06-30T22:00:00+00:00"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tenant", "nobody"], "There is no tenant 'nobody'. Known: acme."),
        (["--tenant", "acme", "--expires", "soon"], "neither YYYY-MM-DD nor"),
        (["--tenant", "acme", "--expires", "2099-02-30"], "neither YYYY-MM-DD nor"),
        (["--tenant", "acme", "--expires", "2001-01-01"], "in the past"),
    ],
)
def test_it_says_what_is_wrong(acme: Tenant, arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        run("issue_key", "--name", "shop", *arguments)
    assert not APIKey.objects.exists()


def test_it_refuses_a_suspended_tenant(acme: Tenant) -> None:
    Tenant.objects.update(status="suspended")
    with pytest.raises(CommandError, match="acme is suspended"):
        run("issue_key", "--tenant", "acme", "--name", "shop")


@pytest.mark.django_db
def test_it_imports_the_list_of_the_settings(settings: object) -> None:
    settings.API_KEYS = ["guide-key-0123456789"]  # type: ignore[attr-defined]
    assert run("import_api_keys") == ("", "API_KEYS: 1 imported into the tenant 'default', 0 known.\n")
    assert run("import_api_keys")[1] == "API_KEYS: 0 imported into the tenant 'default', 1 known.\n"
