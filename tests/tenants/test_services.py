"""Keys: issued, rotated, revoked, imported."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.utils import timezone

from tenants import keys
from tenants.facts import load_callers, load_imported
from tenants.models import APIKey, KeySecret, Tenant
from tenants.services import import_api_keys, issue_key, revoke_key, rotate_key


def digest(text: str) -> bytes:
    return keys.digest(text, settings.KEY_PEPPER.encode())


def test_it_issues_a_key_that_its_caller_is_found_by(acme: Tenant, admin: User) -> None:
    key, secret = issue_key(tenant=acme, name=" shop ", allowed_models=["acme-chat"], created_by=admin)

    assert keys.public_id_of(secret) == key.public_id
    caller = load_callers([key.public_id])[key.public_id]
    assert caller.has_digest(digest(secret), timezone.now())
    assert (caller.tenant, caller.key_name, caller.key_models) == ("acme", "shop", ("acme-chat",))
    assert key.created_by == admin


def test_it_stores_no_secret(acme: Tenant) -> None:
    key, secret = issue_key(tenant=acme, name="shop")

    (stored,) = key.secrets.all()
    assert stored.last4 == secret[-4:]
    assert len(bytes(stored.digest)) == 32
    rows = [*KeySecret.objects.values_list(), *APIKey.objects.values_list(), *APIKey.history.values_list()]
    assert not any(secret[20:-6] in str(value) for row in rows for value in row)


@pytest.mark.parametrize("status", ["suspended", "closed"])
def test_it_issues_nothing_for_a_tenant_that_is_not_active(acme: Tenant, status: str) -> None:
    acme.status = status
    with pytest.raises(ValidationError, match=f"acme is {status}"):
        issue_key(tenant=acme, name="shop")


def test_it_refuses_an_end_in_the_past_and_an_empty_name(acme: Tenant) -> None:
    with pytest.raises(ValidationError, match="in the past"):
        issue_key(tenant=acme, name="shop", expires_at=timezone.now())
    with pytest.raises(ValidationError, match="blank"):
        issue_key(tenant=acme, name="  ")
    assert not APIKey.objects.exists()


def test_it_rotates_with_an_overlap_in_which_both_secrets_work(acme: Tenant) -> None:
    key, old = issue_key(tenant=acme, name="shop")

    new = rotate_key(key=key, overlap=timedelta(hours=1))

    now = timezone.now()
    caller = load_callers([key.public_id])[key.public_id]
    assert caller.has_digest(digest(old), now) and caller.has_digest(digest(new), now)
    later = now + timedelta(hours=2)
    assert not caller.has_digest(digest(old), later)
    assert caller.has_digest(digest(new), later)


def test_it_rotates_without_overlap_and_never_prolongs_an_older_secret(acme: Tenant) -> None:
    key, first = issue_key(tenant=acme, name="shop")
    second = rotate_key(key=key, overlap=timedelta(0))
    third = rotate_key(key=key, overlap=timedelta(days=7))

    caller = load_callers([key.public_id])[key.public_id]
    now = timezone.now()
    assert [caller.has_digest(digest(s), now) for s in (first, second, third)] == [False, True, True]


def test_it_makes_rotation_and_revocation_known_to_every_process(acme: Tenant, admin: User) -> None:
    key, _ = issue_key(tenant=acme, name="shop")
    versions = [load_callers([key.public_id])[key.public_id].key_version]
    rotate_key(key=key, overlap=timedelta(0))
    versions.append(load_callers([key.public_id])[key.public_id].key_version)
    revoke_key(key=key, by=admin)
    versions.append(load_callers([key.public_id])[key.public_id].key_version)

    assert versions == sorted(set(versions))


def test_it_revokes_once_and_says_who_did(acme: Tenant, admin: User) -> None:
    key, _ = issue_key(tenant=acme, name="shop")

    first = revoke_key(key=key, by=admin)
    again = revoke_key(key=key, by=None)

    assert first.revoked_at == again.revoked_at
    assert not again.is_live()
    newest = key.history.latest()
    assert (newest.history_change_reason, newest.history_user) == ("revoked", admin)


def test_it_rotates_no_dead_key(acme: Tenant, admin: User) -> None:
    key, _ = issue_key(tenant=acme, name="shop")
    revoke_key(key=key, by=admin)
    with pytest.raises(ValidationError, match="revoked or has expired"):
        rotate_key(key=key, overlap=timedelta(0))


@pytest.mark.django_db
def test_it_imports_each_key_of_the_list_once_into_the_default_tenant() -> None:
    created = import_api_keys(["guide-key-0123456789", "short", "guide-key-0123456789", ""])

    assert [key.tenant.slug for key in created] == ["default", "default"]
    assert import_api_keys(["short", "guide-key-0123456789"]) == []
    callers = load_imported()
    assert set(callers) == {digest("guide-key-0123456789"), digest("short")}
    assert callers[digest("short")].may_call("any-model")
    assert sorted(KeySecret.objects.values_list("last4", flat=True)) == ["", "6789"]


@pytest.mark.django_db
def test_it_keeps_an_imported_key_that_left_the_list_and_its_revocation(admin: User) -> None:
    (key,) = import_api_keys(["guide-key-0123456789"])
    import_api_keys([])
    assert APIKey.objects.get().is_live()
    revoke_key(key=key, by=admin)
    import_api_keys(["guide-key-0123456789"])
    assert not APIKey.objects.get().is_live()


@pytest.mark.django_db
def test_it_keeps_the_public_id_of_an_imported_key_of_our_own_shape() -> None:
    secret = keys.generate_secret("0123456789ab")
    (key,) = import_api_keys([secret])
    assert key.public_id == "0123456789ab"


@pytest.mark.parametrize("name", ["CET", "WET", "localtime", "Europe/Berlim"])
def test_it_refuses_a_zone_whose_days_the_database_counts_differently(acme: Tenant, name: str) -> None:
    acme.timezone = name
    with pytest.raises(ValidationError, match="time zone"):
        acme.full_clean()
