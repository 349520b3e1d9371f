"""Who is calling, on the real database: what is let in, and that every refusal looks the same."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from apiv1 import auth
from apiv1.errors import error_object
from apiv1.keyring import KeyRing
from gateway import snapshots
from gateway.errors import GatewayError, InvalidApiKey, MissingApiKey, TenantSuspended, Unavailable
from tenants import keys, services
from tenants.models import APIKey, KeySecret, Tenant


async def refusal(text: str) -> bytes:
    """The envelope of the 401, with the mask taken out."""
    with pytest.raises(InvalidApiKey) as caught:
        await auth.authenticate(f"Bearer {text}")
    assert caught.value.status == 401
    return re.sub(rb"provided: .+?\. Ask", b"provided: MASK. Ask", error_object(caught.value))


def change(key: APIKey | Tenant, **fields: Any) -> Any:
    return type(key).objects.filter(pk=key.pk).update(**fields)


async def test_it_knows_the_caller(key: APIKey, secret: str) -> None:
    caller = await auth.authenticate(f"Bearer {secret}")
    assert (caller.public_id, caller.tenant, caller.key_name) == (key.public_id, "acme", "laptop")


@pytest.mark.parametrize("form", ["bearer {}", "BEARER {}", "Bearer   {}", "  Bearer {}  ", "Bearer {}\t"])
async def test_it_takes_any_form_of_the_header(form: str, secret: str) -> None:
    assert (await auth.authenticate(form.format(secret))).tenant == "acme"


@pytest.mark.parametrize(
    "header", [None, "", " ", "Bearer", "Bearer  ", "Basic dTpw", "sk-cf-x", "Bearer:x", "Token x"]
)
async def test_it_asks_for_a_key(header: str | None, house: None) -> None:
    with pytest.raises(MissingApiKey, match="You didn't provide an API key") as caught:
        await auth.authenticate(header)
    assert (caught.value.status, caught.value.code, caught.value.type) == (401, None, "invalid_request_error")


async def test_it_refuses_every_bad_key_in_the_same_words(key: APIKey, secret: str, acme: Tenant) -> None:
    other, revoked = await snapshots.read(lambda: services.issue_key(tenant=acme, name="revoked"))
    await snapshots.read(lambda: services.revoke_key(key=other, by=None))
    late, expired = await snapshots.read(lambda: services.issue_key(tenant=acme, name="expired"))
    await snapshots.read(lambda: change(late, expires_at=timezone.now() - timedelta(seconds=1)))
    unknown = keys.generate_secret(keys.generate_public_id())
    wrong_secret = keys.generate_secret(key.public_id)
    typo = secret[:-1] + ("0" if secret[-1] != "0" else "1")
    bad = [revoked, expired, unknown, wrong_secret, typo, "sk-proj-of-somebody-else", "x", "é" * 30, secret + " x"]
    answers = {await refusal(text) for text in bad}
    assert len(answers) == 1
    assert b'"code":"invalid_api_key"' in answers.pop()


async def test_it_shows_no_more_of_a_key_than_openai_does(house: None) -> None:
    text = keys.generate_secret(keys.generate_public_id())
    with pytest.raises(InvalidApiKey) as caught:
        await auth.authenticate(f"Bearer {text}")
    assert f"Incorrect API key provided: sk-cf-***{text[-4:]}." in caught.value.message
    assert text[6:18] not in caught.value.message


@pytest.mark.parametrize("status", ["suspended", "closed"])
async def test_it_tells_of_a_suspension_only_who_holds_the_secret(
    status: str, key: APIKey, secret: str, acme: Tenant
) -> None:
    await snapshots.read(lambda: change(acme, status=status))
    with pytest.raises(TenantSuspended) as caught:
        await auth.authenticate(f"Bearer {secret}")
    assert (caught.value.status, caught.value.code) == (401, "tenant_suspended")
    await refusal(keys.generate_secret(key.public_id))


async def test_a_revoked_key_of_a_suspended_tenant_is_just_refused(key: APIKey, secret: str, acme: Tenant) -> None:
    await snapshots.read(lambda: change(acme, status="suspended"))
    await snapshots.read(lambda: change(key, status="revoked"))
    await refusal(secret)


async def test_a_key_expires_without_anybody_changing_it(
    key: APIKey, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = timezone.now() + timedelta(hours=1)
    await snapshots.read(lambda: change(key, expires_at=soon))
    await auth.authenticate(f"Bearer {secret}")

    class Later(auth.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return soon

    monkeypatch.setattr(auth, "datetime", Later)
    await refusal(secret)


async def test_both_secrets_work_while_a_rotation_overlaps(key: APIKey, secret: str) -> None:
    new = await snapshots.read(lambda: services.rotate_key(key=key, overlap=timedelta(hours=1)))
    for text in (secret, new):
        assert (await auth.authenticate(f"Bearer {text}")).public_id == key.public_id


async def test_the_old_secret_ends_with_the_overlap(key: APIKey, secret: str) -> None:
    new = await snapshots.read(lambda: services.rotate_key(key=key, overlap=timedelta(0)))
    await refusal(secret)
    assert (await auth.authenticate(f"Bearer {new}")).public_id == key.public_id


async def test_a_known_key_costs_no_query(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await auth.authenticate(f"Bearer {secret}")
    monkeypatch.setattr(snapshots, "read", None)
    await auth.authenticate(f"Bearer {secret}")


async def test_a_flood_of_bad_keys_costs_no_queries(
    key: APIKey, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await auth.authenticate(f"Bearer {secret}")
    await refusal("any other shape")  # reads the imported digests, once
    wrong = keys.generate_secret(key.public_id)
    await refusal(wrong)
    monkeypatch.setattr(snapshots, "read", None)
    for number in range(200):
        await refusal(f"sk-whatever-{number}-{number}")
        await refusal(secret[:-6] + f"{number:06}")  # the checksum is wrong
        await refusal(wrong)  # the id is known, the secret is known to be wrong


async def test_wrong_secrets_of_a_known_key_share_their_look_ups(
    key: APIKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, queries = snapshots.read, []

    async def counted(function: Any, *args: Any) -> Any:
        queries.append(args)
        return await read(function, *args)

    monkeypatch.setattr(snapshots, "read", counted)
    await asyncio.gather(*(refusal(keys.generate_secret(key.public_id)) for _ in range(300)))
    assert len(queries) <= 3


async def test_what_an_admin_gives_back_counts_at_once(key: APIKey, secret: str, acme: Tenant) -> None:
    """A refusal is remembered of no one who holds the secret."""
    for owner, refused, restored in (
        (acme, {"status": "suspended"}, {"status": "active"}),
        (key, {"status": "revoked"}, {"status": "active"}),
        (key, {"expires_at": timezone.now() - timedelta(1)}, {"expires_at": None}),
    ):
        await auth.authenticate(f"Bearer {secret}")
        await snapshots.read(lambda o=owner, f=refused: change(o, **f))
        with pytest.raises((TenantSuspended, InvalidApiKey)):
            await auth.reload(await auth.authenticate(f"Bearer {secret}"))
        with pytest.raises((TenantSuspended, InvalidApiKey)):
            await auth.authenticate(f"Bearer {secret}")
        await snapshots.read(lambda o=owner, f=restored: change(o, **f))
        await auth.authenticate(f"Bearer {secret}")


async def test_a_new_secret_counts_at_once(key: APIKey, secret: str) -> None:
    await auth.authenticate(f"Bearer {secret}")
    new = await snapshots.read(lambda: services.rotate_key(key=key, overlap=timedelta(0)))
    await auth.authenticate(f"Bearer {new}")
    await refusal(secret)


async def test_a_refusal_holds_while_the_database_is_away(
    key: APIKey, secret: str, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await snapshots.read(lambda: change(acme, status="suspended"))
    with pytest.raises(TenantSuspended):
        await auth.authenticate(f"Bearer {secret}")

    async def away(*args: Any) -> Any:
        raise Unavailable("The service is temporarily unavailable.", retry_after=2)

    monkeypatch.setattr(snapshots, "read", away)
    with pytest.raises(TenantSuspended):
        await auth.authenticate(f"Bearer {secret}")
    with pytest.raises(Unavailable):  # it may be a new one
        await auth.authenticate(f"Bearer {keys.generate_secret(key.public_id)}")


async def test_a_reload_sees_what_has_changed(key: APIKey, secret: str) -> None:
    caller = await auth.authenticate(f"Bearer {secret}")
    await snapshots.read(lambda: change(key, allowed_models=["acme-small"]))
    fresh = await auth.reload(caller)
    assert fresh.key_models == ("acme-small",)
    assert fresh.key_version > caller.key_version
    await snapshots.read(lambda: services.revoke_key(key=key, by=None))
    with pytest.raises(InvalidApiKey):
        await auth.reload(fresh)
    await refusal(secret)


async def test_imported_keys_have_any_shape(house: None, ring: KeyRing) -> None:
    await snapshots.read(lambda: services.import_api_keys(["s3cret", "schlüssel-eins"]))
    assert (await auth.authenticate("Bearer s3cret")).tenant == "default"
    # as ASGI and Django hand over UTF-8 bytes in a header
    header = "Bearer schlüssel-eins".encode().decode("latin-1")
    assert (await auth.authenticate(header)).tenant == "default"
    await refusal("s3cret2")


async def test_an_imported_key_is_revoked_like_any_other(house: None) -> None:
    (key,) = await snapshots.read(lambda: services.import_api_keys(["s3cret"]))
    caller = await auth.authenticate("Bearer s3cret")
    await snapshots.read(lambda: services.revoke_key(key=key, by=None))
    with pytest.raises(InvalidApiKey):
        await auth.reload(caller)
    await refusal("s3cret")


async def test_an_imported_secret_that_was_deleted_is_refused(house: None) -> None:
    (key,) = await snapshots.read(lambda: services.import_api_keys(["s3cret"]))
    caller = await auth.authenticate("Bearer s3cret")
    await snapshots.read(lambda: KeySecret.objects.filter(key=key).delete())
    await auth.reload(caller)
    await refusal("s3cret")


async def test_it_says_503_for_a_key_it_does_not_know_while_the_database_is_away(
    secret: str, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, second = await snapshots.read(lambda: services.issue_key(tenant=acme, name="second"))
    await auth.authenticate(f"Bearer {secret}")

    async def away(*args: Any) -> Any:
        raise Unavailable("The service is temporarily unavailable.", retry_after=2)

    monkeypatch.setattr(snapshots, "read", away)
    assert (await auth.authenticate(f"Bearer {secret}")).tenant == "acme"
    with pytest.raises(GatewayError) as caught:
        await auth.authenticate(f"Bearer {second}")
    assert (caught.value.status, caught.value.headers) == (503, {"retry-after": "2"})
