"""What people do to the books: corrections, ratings, resolutions. Afterwards counters are what the ledger says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import connection
from django.utils import timezone

from gateway.catalogue.models import Model, Price, Provider
from gateway.ledger.books import Delta
from gateway.ledger.models import Adjustment, Counter, UsageRecord, WorkItem
from gateway.ledger.services import TOKENS, adjust, net, rate_unpriced, resolve_unknown
from gateway.ledger.verification import verify
from tenants.models import APIKey
from tests.billing import books

NOON = datetime(2026, 11, 10, 12, tzinfo=UTC)


@pytest.fixture
def by(transactional_db: None) -> User:
    return User.objects.create_superuser("alice")


def booked(owner: APIKey, model: Model, **fields: Any) -> UsageRecord:
    """A record, and the counters that the desk would have moved with it."""
    request_id = books.record(owner, NOON, **{"catalogue_model_id": model.pk, **fields})
    record: Any = UsageRecord.objects.get(request_id=request_id)
    key = [owner.tenant_id, owner.pk, record.charge_currency]
    tokens = sum(getattr(record, name) for name in TOKENS)
    with connection.cursor() as cursor:
        cursor.execute("SELECT ledger_lock_owner(%s, %s, %s)", key)
        cursor.execute(
            "SELECT ledger_move_counters(ARRAY[ROW(%s, %s, %s, 1, %s, %s, 0, 0, 0)::ledger_delta])",
            [*key, tokens, record.charge or 0],
        )
    return record  # type: ignore[no-any-return]


def work(record: UsageRecord, kind: str) -> WorkItem:
    return WorkItem.objects.create(
        request_id=record.request_id, kind=kind, tenant_id=record.tenant_id, created_at=timezone.now()
    )


@pytest.fixture
def unpriced(acme: APIKey, chat_model: Model) -> WorkItem:
    nothing = {"charge": None, "cost": None, "charge_price_id": None, "cost_price_id": None, "lines": "[]"}
    return work(booked(acme, chat_model, **nothing), "unpriced")


@pytest.fixture
def unknown(acme: APIKey, chat_model: Model) -> WorkItem:
    prices = {price.side: price.pk for price in Price.objects.all()}
    swept = {"status": "unknown", "charge": 0, "cost": 0, "estimated": True, "cached_input_tokens": 0}
    swept |= {"reasoning_tokens": 0, "input_tokens": 1000, "output_tokens": 2000}
    swept |= {"charge_price_id": prices["charge"], "cost_price_id": prices["cost"]}
    return work(booked(acme, chat_model, **swept), "unknown")


def record_of(item: WorkItem) -> UsageRecord:
    found: Any = UsageRecord.objects.get(request_id=item.request_id)
    return found  # type: ignore[no-any-return]


def assert_books_agree() -> None:
    assert verify().drift == []


# ---- corrections ----


def test_it_corrects_a_record_and_moves_the_counters(acme: APIKey, chat_model: Model, by: User) -> None:
    record = booked(acme, chat_model)

    adjustment = adjust(record=record, delta=Delta(output_tokens=-100, charge=-60_000), reason=" refund ", by=by)

    assert (adjustment.kind, adjustment.reason, adjustment.created_by) == ("correction", "refund", by)
    assert (adjustment.tenant_id, adjustment.key_id) == (acme.tenant_id, acme.pk)
    assert (adjustment.local_date, adjustment.started_at) == (record.local_date, NOON)
    assert net(record)["charge"] == 495_000 - 60_000
    assert {int(counter.charge) for counter in Counter.objects.all()} == {435_000}
    assert_books_agree()


def test_it_corrects_no_further_than_to_zero(acme: APIKey, chat_model: Model, by: User) -> None:
    record = booked(acme, chat_model)
    adjust(record=record, delta=Delta(charge=-495_000), reason="refund", by=by)

    with pytest.raises(ValidationError, match=r"would be -0\.000000001"):
        adjust(record=record, delta=Delta(charge=-1), reason="again", by=by)
    with pytest.raises(ValidationError, match="would be -1"):
        adjust(record=record, delta=Delta(input_tokens=-1001), reason="again", by=by)
    assert Adjustment.objects.count() == 1
    assert_books_agree()


def test_it_corrects_nothing_without_a_reason_or_a_number(acme: APIKey, chat_model: Model, by: User) -> None:
    record = booked(acme, chat_model)
    with pytest.raises(ValidationError, match="Say why"):
        adjust(record=record, delta=Delta(charge=1), reason=" ", by=by)
    with pytest.raises(ValidationError, match="changes nothing"):
        adjust(record=record, delta=Delta(), reason="none", by=by)
    assert not Adjustment.objects.exists()


def test_it_corrects_no_charge_that_is_not_known_yet(unpriced: WorkItem, unknown: WorkItem, by: User) -> None:
    """The rating, the resolution or a late settlement books all of it, and would count beside the correction."""
    with pytest.raises(ValidationError, match="rate it"):
        adjust(record=record_of(unpriced), delta=Delta(charge=1), reason="by hand", by=by)
    with pytest.raises(ValidationError, match="resolve it"):
        adjust(record=record_of(unknown), delta=Delta(output_tokens=1), reason="by hand", by=by)
    assert not Adjustment.objects.exists()


# ---- unpriced ----


def test_it_rates_at_the_price_that_was_in_force(unpriced: WorkItem, chat_model: Model, by: User) -> None:
    Price.objects.create(
        model=chat_model, effective_from=NOON + timedelta(hours=1), currency="USD", input=10**12, output=10**12
    )

    adjustment = rate_unpriced(item=unpriced, by=by)

    # 1000 and 200 cached at 0.15, 500 and 50 reasoning at 0.60, per million
    assert adjustment.charge == 150_000 + 30_000 + 300_000 + 30_000
    assert adjustment.cost == 100_000 + 20_000 + 200_000 + 20_000
    assert (adjustment.kind, adjustment.cost_currency) == ("rating", "USD")
    assert sum(int(line[4]) for line in adjustment.lines if line[0] == "charge") == adjustment.charge
    assert Price.objects.filter(first_used_at=None).count() == 1
    unpriced.refresh_from_db()
    assert (unpriced.resolved_by, unpriced.resolved_at is not None) == (by, True)
    assert_books_agree()


def test_it_prefers_the_tenants_own_price(unpriced: WorkItem, chat_model: Model, acme: APIKey, by: User) -> None:
    at = NOON - timedelta(days=300)
    Price.objects.create(model=chat_model, tenant=acme.tenant, effective_from=at, currency="USD", input=0, output=0)
    assert rate_unpriced(item=unpriced, by=by).charge == 0


def test_it_rates_nothing_while_there_is_no_price(unpriced: WorkItem, by: User, globex: APIKey) -> None:
    Price.objects.filter(side="charge").update(effective_from=NOON + timedelta(seconds=1))
    Price.objects.create(
        model=Model.objects.get(), tenant=globex.tenant, effective_from=NOON, currency="USD", input=1, output=1
    )
    Price.objects.create(model=Model.objects.get(), effective_from=NOON, currency="EUR", input=1, output=1)

    with pytest.raises(ValidationError, match="no price in USD that was in force at 2026-11-10 12:00 UTC"):
        rate_unpriced(item=unpriced, by=by)
    assert not Adjustment.objects.exists()


def test_it_rates_once(unpriced: WorkItem, by: User) -> None:
    rate_unpriced(item=unpriced, by=by)
    with pytest.raises(ValidationError, match="resolved already"):
        rate_unpriced(item=unpriced, by=by)
    assert Adjustment.objects.count() == 1


def test_it_rates_the_tokens_as_they_were_corrected(unpriced: WorkItem, by: User) -> None:
    adjust(record=record_of(unpriced), delta=Delta(output_tokens=-500, reasoning_tokens=-50), reason="wrong", by=by)
    assert rate_unpriced(item=unpriced, by=by).charge == 150_000 + 30_000
    assert_books_agree()


# ---- unknown ----


def test_it_charges_an_unknown_request_at_the_price_of_its_admission(
    unknown: WorkItem, chat_model: Model, by: User
) -> None:
    Price.objects.create(
        model=chat_model, effective_from=NOON - timedelta(hours=1), currency="USD", input=10**12, output=10**12
    )

    adjustment = resolve_unknown(
        item=unknown, charged=True, reason="the provider billed it", by=by, output_tokens=100
    )

    assert (adjustment.input_tokens, adjustment.output_tokens) == (0, -1900)
    assert adjustment.charge == 150_000 + 60_000
    assert adjustment.cost == 100_000 + 40_000
    unknown.refresh_from_db()
    assert unknown.resolved_at is not None
    assert_books_agree()


def test_it_resolves_an_unknown_request_as_not_charged(unknown: WorkItem, by: User) -> None:
    adjustment = resolve_unknown(
        item=unknown, charged=False, reason="it never arrived", by=by, input_tokens=0, output_tokens=0
    )
    assert (adjustment.charge, adjustment.cost, adjustment.lines) == (0, 0, [])
    assert {counter.tokens for counter in Counter.objects.all()} == {0}
    assert_books_agree()


def test_it_resolves_once_and_only_what_is_unknown(unknown: WorkItem, unpriced: WorkItem, by: User) -> None:
    resolve_unknown(item=unknown, charged=False, reason="no", by=by)
    with pytest.raises(ValidationError, match="resolved already"):
        resolve_unknown(item=unknown, charged=True, reason="yes", by=by)
    with pytest.raises(ValidationError, match="is unpriced, not unknown"):
        resolve_unknown(item=unpriced, charged=True, reason="yes", by=by)
    with pytest.raises(ValidationError, match="Say why"):
        resolve_unknown(item=unpriced, charged=True, reason="", by=by)


def test_it_charges_what_died_at_a_fallback_at_the_fallbacks_price(acme: APIKey, chat_model: Model, by: User) -> None:
    provider = Provider.objects.create(name="other", protocol="echo")
    small = Model.objects.create(public_id="acme-small")
    since = NOON - timedelta(days=1)
    for side, price in (("charge", 2_000_000), ("cost", 1_000_000)):
        Price.objects.create(model=small, side=side, currency="USD", input=price, output=price, effective_from=since)
    fixed = {price.side: price.pk for price in Price.objects.filter(model=chat_model)}
    swept = {"status": "unknown", "charge": 0, "cost": 0, "estimated": True, "cached_input_tokens": 0}
    swept |= {"reasoning_tokens": 0, "input_tokens": 1000, "output_tokens": 2000, "lines": "[]"}
    swept |= {"charge_price_id": fixed["charge"], "cost_price_id": fixed["cost"], "served_model": "acme-small"}
    item = work(booked(acme, chat_model, provider_id=provider.pk, **swept), "unknown")

    adjustment = resolve_unknown(item=item, charged=True, reason="the provider billed it", by=by)

    assert (adjustment.charge, adjustment.cost) == (3000 * 2, 3000)
    assert_books_agree()


def test_its_cost_is_that_of_the_provider_that_had_it(acme: APIKey, chat_model: Model, by: User) -> None:
    first, second = (Provider.objects.create(name=name, protocol="echo") for name in ("one", "two"))
    prices = {}
    for provider, price in ((first, 1_000_000), (second, 5_000_000)):
        prices[provider] = Price.objects.create(
            model=chat_model,
            side="cost",
            provider=provider,
            currency="USD",
            input=price,
            output=price,
            effective_from=NOON - timedelta(days=1),
        )
    swept = {"status": "unknown", "charge": 0, "cost": 0, "estimated": True, "cached_input_tokens": 0}
    swept |= {"reasoning_tokens": 0, "input_tokens": 1000, "output_tokens": 2000, "lines": "[]"}
    swept |= {"cost_price_id": prices[first].pk, "provider_id": second.pk}
    item = work(booked(acme, chat_model, **swept), "unknown")
    assert resolve_unknown(item=item, charged=True, reason="billed", by=by).cost == 3000 * 5
