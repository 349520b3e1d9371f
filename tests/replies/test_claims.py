"""The statements: who gets a claim, what becomes of it, what expires, what is bounded."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from gateway.ledger.models import Process
from gateway.replies import claims, housekeeping
from gateway.replies.claims import Asked, Finding, keep, take
from gateway.replies.models import KeptReply, Unreadable, opened, sealed
from tenants.models import APIKey, Tenant
from tests.billing import books
from tests.cast import acme, globex

pytestmark = pytest.mark.django_db(transaction=True)
__all__ = ["acme", "globex"]
Ask = Callable[..., Asked]


@pytest.fixture
def process() -> Process:
    now = timezone.now()
    return Process.objects.create(id=uuid.uuid4(), host="here", pid=1, started_at=now, heartbeat_at=now)


@pytest.fixture
def ask(acme: Tenant, process: Process) -> Ask:
    def make(key: str = "k", body: str = "b", *, tenant: Tenant = acme, by: Process = process) -> Asked:
        return Asked(tenant.pk, key.ljust(32).encode(), body.encode(), uuid.uuid4(), by.pk, False)

    return make


def kept(asked: Asked, answer: bytes = b"answer") -> int:
    found = take(asked)
    assert found.finding is Finding.OURS
    assert keep(found.id, asked, answer, {"x-counterfoil-max-tokens": "5"})
    return found.id


def ago(**units: float) -> Any:
    return timezone.now() - timedelta(**units)


def test_the_first_gets_it_and_the_second_waits(ask: Ask) -> None:
    assert take(ask()).finding is Finding.OURS
    assert take(ask()).finding is Finding.RUNNING
    assert take(ask(body="other")).finding is Finding.OTHER_BODY
    assert take(ask("k2")).finding is Finding.OURS


def test_what_is_kept_is_found(ask: Ask) -> None:
    first = ask()
    kept(first, b"the answer")
    found = take(ask())
    assert (found.finding, found.answer, found.request_id) == (Finding.KEPT, b"the answer", first.request_id)
    assert found.headers == {"x-counterfoil-max-tokens": "5"}


def test_a_neighbour_sees_nothing(ask: Ask, acme: Tenant, globex: Tenant) -> None:
    kept(ask())
    assert take(ask(tenant=globex)).finding is Finding.OURS
    assert KeptReply.objects.for_tenant(globex).count() == 1
    assert KeptReply.objects.for_tenant(acme).get().tenant == acme


def test_a_content_opens_in_its_own_row_alone(ask: Ask, globex: Tenant) -> None:
    """Whoever can write to the table cannot hand one tenant's answer to another."""
    stolen = KeptReply.objects.get(pk=kept(ask("k1"))).content
    KeptReply.objects.filter(pk=kept(ask("k2", tenant=globex), b"theirs")).update(content=stolen)
    assert take(ask("k2", tenant=globex)).finding is Finding.LOST
    with pytest.raises(Unreadable):
        opened(sealed(b"answer", b"a" * 32), b"b" * 32)
    assert opened(sealed(b"answer", b"a" * 32), b"a" * 32) == b"answer"


def test_a_released_claim_is_free(ask: Ask) -> None:
    first = ask()
    claims.release(take(first).id, first)
    assert take(ask()).finding is Finding.OURS


def test_a_kept_answer_is_not_released(ask: Ask) -> None:
    """A request may be cancelled in the moment in which its answer was kept."""
    first = ask()
    claims.release(kept(first), first)
    assert take(ask()).finding is Finding.KEPT


def test_one_that_is_too_large_stays_known(ask: Ask) -> None:
    first = ask()
    claim = take(first).id
    claims.give_up_content(claim, first)
    assert take(ask()).finding is Finding.TOO_LARGE
    claims.release(claim, first)  # it broke off after all
    assert take(ask()).finding is Finding.OURS


# ---- time ----


def test_an_expired_answer_is_not_found_whether_or_not_it_was_deleted(ask: Ask) -> None:
    KeptReply.objects.filter(pk=kept(ask())).update(expires_at=ago(seconds=1))
    second = ask(body="other")
    assert take(second).finding is Finding.OURS
    row = KeptReply.objects.get()
    assert (row.state, row.content, row.request_id) == ("running", b"", second.request_id)


def test_it_is_kept_for_as_long_as_the_setting_says_from_its_end(ask: Ask, settings: Any) -> None:
    settings.IDEMPOTENCY_HOURS = 3
    asked = ask()
    claim = take(asked)
    KeptReply.objects.update(created_at=ago(hours=2), expires_at=ago(hours=-1))
    keep(claim.id, asked, b"answer", {})
    left = KeptReply.objects.get().expires_at - timezone.now()
    assert timedelta(hours=2, minutes=59) < left <= timedelta(hours=3)


def test_housekeeping_deletes_what_has_expired(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "AT_ONCE", 2)
    gone = [kept(ask(f"old{number}")) for number in range(5)]
    KeptReply.objects.filter(pk__in=gone).update(expires_at=ago(seconds=1))
    left = kept(ask("new"))
    assert housekeeping.tidy() == 5
    assert KeptReply.objects.get().pk == left
    assert housekeeping.tidy() == 0


def test_switched_off_it_deletes_all(ask: Ask, settings: Any) -> None:
    kept(ask())
    settings.IDEMPOTENCY_HOURS = 0
    assert housekeeping.tidy() == 1


# ---- bounds ----


def test_a_tenants_oldest_go_when_there_are_too_many(ask: Ask, globex: Tenant, settings: Any) -> None:
    settings.IDEMPOTENCY_MAX_KEPT = 3
    theirs = kept(ask("theirs", tenant=globex))
    running = take(ask("running"))
    mine = [kept(ask(f"k{number}")) for number in range(5)]
    assert set(KeptReply.objects.values_list("pk", flat=True)) == {theirs, running.id, *mine[2:]}


def test_housekeeping_keeps_the_bound_too(ask: Ask, settings: Any) -> None:
    mine = [kept(ask(f"k{number}")) for number in range(5)]
    settings.IDEMPOTENCY_MAX_KEPT = 2
    assert housekeeping.tidy() == 3
    assert set(KeptReply.objects.values_list("pk", flat=True)) == set(mine[3:])


# ---- processes that died ----


def test_a_claim_of_an_ended_process_is_taken_over(ask: Ask, process: Process) -> None:
    first = ask()
    claim = take(first)
    process.ended_at = timezone.now()
    process.save()
    assert take(ask(body="other")).finding is Finding.OTHER_BODY
    heir = ask()
    assert take(heir) == claims.Found(Finding.OURS, claim.id)
    assert not keep(claim.id, first, b"too late", {})  # it was not dead after all: the heir's claim stands
    claims.release(claim.id, first)
    assert keep(claim.id, heir, b"answer", {})
    assert take(ask()).answer == b"answer"


def test_one_look_is_not_enough(ask: Ask, process: Process) -> None:
    """After an outage of the database every heartbeat is old."""
    take(ask())
    Process.objects.update(heartbeat_at=ago(seconds=20))
    assert [take(ask()).finding for _ in range(2)] == [Finding.RUNNING] * 2
    suspected_at = KeptReply.objects.get().suspected_at
    assert suspected_at is not None
    Process.objects.update(heartbeat_at=timezone.now())  # it lives
    KeptReply.objects.update(suspected_at=ago(seconds=10))
    assert take(ask()).finding is Finding.RUNNING


def test_two_looks_without_a_heartbeat_between_are(ask: Ask) -> None:
    take(ask())
    Process.objects.update(heartbeat_at=ago(seconds=30))
    take(ask())
    KeptReply.objects.update(suspected_at=ago(seconds=7))
    assert take(ask()).finding is Finding.OURS


def test_one_that_recovered_and_died_later_is_suspected_anew(ask: Ask) -> None:
    take(ask())
    KeptReply.objects.update(suspected_at=ago(seconds=60))
    Process.objects.update(heartbeat_at=ago(seconds=30))  # after that suspicion
    assert take(ask()).finding is Finding.RUNNING
    assert KeptReply.objects.get().suspected_at > ago(seconds=5)


def test_a_process_that_nobody_knows_is_looked_at_twice_too(ask: Ask) -> None:
    take(ask())
    Process.objects.all().delete()
    assert take(ask()).finding is Finding.RUNNING
    KeptReply.objects.update(suspected_at=ago(seconds=7))
    assert take(ask()).finding is Finding.OURS


def test_what_was_charged_is_never_run_again(ask: Ask, acme: Tenant, process: Process) -> None:
    """Its process died between the usage record and the keeping of the answer."""
    key = APIKey.objects.create(public_id="acmeacmeacme", tenant=acme, name="laptop")
    request_id = books.record(key, timezone.now())
    take(ask())
    KeptReply.objects.update(request_id=request_id)
    assert take(ask()).finding is Finding.RUNNING  # it lives, and is about to keep it
    Process.objects.update(ended_at=timezone.now())
    assert take(ask()).finding is Finding.LOST


# ---- keys ----


def test_encryption_keys_rotate(ask: Ask, settings: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pk = kept(ask(), b"the answer")
    old, new = list(settings.ENCRYPTION_KEYS), Fernet.generate_key().decode()
    settings.ENCRYPTION_KEYS = [new, *old]
    assert take(ask()).answer == b"the answer"
    call_command("rotate_credentials")
    assert "1 kept answer too." in capsys.readouterr().err
    settings.ENCRYPTION_KEYS = [new]
    assert take(ask()).answer == b"the answer"
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    assert KeptReply.reencrypt() == 0
    assert take(ask()).finding is Finding.LOST
    assert KeptReply.objects.filter(pk=pk).exists()


def test_a_stream_is_stored_small(ask: Ask) -> None:
    event = b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","model":"acme-chat"}\n\n'
    kept(ask(), event * 2000)
    row = KeptReply.objects.get()
    assert row.size == len(event) * 2000
    assert len(row.content) < row.size / 20
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT attstorage FROM pg_attribute"
            " WHERE attrelid = 'replies_keptreply'::regclass AND attname = 'content'"
        )
        assert cursor.fetchone() == ("e",)
