"""A key's last use reaches its row later, without anybody taking that for a change of the key."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gateway.billing.last_used import update_last_used
from gateway.ledger.models import Counter
from tenants.models import APIKey
from tests.billing import books

pytestmark = pytest.mark.django_db


def test_it_takes_the_latest_of_a_key_s_counters() -> None:
    key, unused = (books.key(books.tenant(slug)) for slug in ("acme", "globex"))
    Counter.objects.create(scope="key", owner_id=key.pk, currency="USD", last_at=books.NOON)
    Counter.objects.create(scope="key", owner_id=key.pk, currency="EUR", last_at=books.NOON + timedelta(hours=1))
    Counter.objects.create(scope="tenant", owner_id=unused.pk, currency="EUR", last_at=books.NOON)
    assert update_last_used() == 1
    key.refresh_from_db()
    unused.refresh_from_db()
    assert (key.last_used_at, unused.last_used_at) == (books.NOON + timedelta(hours=1), None)


def test_it_leaves_the_version_and_the_history_alone() -> None:
    key = books.key(books.tenant("acme"))
    Counter.objects.create(scope="key", owner_id=key.pk, currency="USD", last_at=books.NOON)
    before = (key.history.count(), APIKey.objects.get(pk=key.pk).version)
    update_last_used()
    assert (key.history.count(), APIKey.objects.get(pk=key.pk).version) == before


def test_it_writes_a_busy_key_once_a_minute_only() -> None:
    key = books.key(books.tenant("acme"))
    counter = Counter.objects.create(scope="key", owner_id=key.pk, currency="USD", last_at=books.NOON)
    update_last_used()
    for seconds, changed in [(59, 0), (61, 1)]:
        counter.last_at = books.NOON + timedelta(seconds=seconds)
        counter.save()
        assert update_last_used() == changed


def test_it_goes_on_until_every_key_is_done() -> None:
    acme = books.tenant("acme")
    for number in range(5):
        key = books.key(acme, f"k{number}")
        Counter.objects.create(scope="key", owner_id=key.pk, currency="USD", last_at=books.NOON)
    assert update_last_used(rows=2) == 5
    assert update_last_used(rows=2) == 0
