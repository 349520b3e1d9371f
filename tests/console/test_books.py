"""The books in the admin: facts are read, never counted, never written; people's decisions are adjustments."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from gateway.catalogue.models import Model, Price
from gateway.ledger.models import Adjustment, DeadLetter, Process, UsageRecord, WorkItem
from tenants.models import APIKey, Tenant
from tests.billing import books

RECORDS = "/admin/ledger/usagerecord/"
NOON = datetime(2026, 11, 10, 12, tzinfo=UTC)


def text_of(response: Any) -> str:
    return str(response.content.decode())


@pytest.fixture
def key(acme: Tenant) -> APIKey:
    return books.key(acme)


@pytest.fixture
def other(globex: Tenant) -> APIKey:
    return books.key(globex)


def listed(client: Client, **asked: Any) -> set[UUID]:
    response = client.get(RECORDS, asked)
    assert response.status_code == 200, response["Location"]
    return {record.request_id for record in response.context["cl"].result_list}


def test_it_filters_records_by_tenant_key_model_status_and_day(browser: Client, key: APIKey, other: APIKey) -> None:
    mine = books.record(key, NOON)
    theirs = books.record(other, NOON, model="other-model")
    failed = books.record(key, NOON, status="failed", error_code="upstream_error")
    # 23:30 UTC on the 10th is the 11th in Berlin, where acme's days are.
    late = books.record(key, NOON + timedelta(hours=11, minutes=30))

    assert listed(browser) == {mine, theirs, failed, late}
    assert listed(browser, tenant__id__exact=other.tenant_id) == {theirs}
    assert listed(browser, key__id__exact=key.pk) == {mine, failed, late}
    assert listed(browser, model="other-model") == {theirs}
    assert listed(browser, status__exact="failed") == {failed}
    assert listed(browser, local_date_from="2026-11-11", local_date_to="2026-11-11") == {late}
    assert listed(browser, local_date_to="2026-11-10") == {mine, theirs, failed}
    assert listed(browser, local_date_from="2026-11-12") == set()


def test_it_finds_a_record_by_any_form_of_its_id(browser: Client, key: APIKey) -> None:
    mine = books.record(key, NOON)
    books.record(key, NOON)
    for term in (str(mine), mine.hex, f"req_{mine.hex}", f"chatcmpl-{mine.hex}", f" {mine} "):
        assert listed(browser, q=term) == {mine}
    assert listed(browser, q="laptop") == set()


def test_it_counts_nothing_and_asks_little(browser: Client, key: APIKey) -> None:
    books.record(key, NOON)
    browser.get(RECORDS)
    with CaptureQueriesContext(connection) as few:
        browser.get(RECORDS)
    for _ in range(60):
        books.record(key, NOON)
    with CaptureQueriesContext(connection) as many:
        response = browser.get(RECORDS)

    assert len(many) == len(few) <= 10
    assert not any("COUNT(" in query["sql"] and "usagerecord" in query["sql"] for query in many)
    assert len(response.context["cl"].result_list) == 50
    assert len(listed(browser, p=2)) == 11


def test_it_reads_only_the_partitions_of_the_days_asked_for(browser: Client, key: APIKey) -> None:
    with CaptureQueriesContext(connection) as captured:
        listed(browser, local_date_from="2026-11-10", local_date_to="2026-11-12")
    (query,) = [q["sql"] for q in captured if 'FROM "ledger_usagerecord"' in q["sql"]]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {query}")
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "ledger_usagerecord_2026_11" in plan
    assert "ledger_usagerecord_2026_12" not in plan and "ledger_usagerecord_2027" not in plan


def test_it_gives_up_on_a_list_that_takes_too_long(
    browser: Client, key: APIKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    books.record(key, NOON)
    from gateway.ledger.admin.records import UsageRecordAdmin

    def slow(self: Any, request: Any) -> Any:
        return UsageRecord.objects.extra(where=["pg_sleep(2) IS NOT NULL"])

    monkeypatch.setattr("gateway.ledger.admin.facts.LIST_TIMEOUT_MS", 50)
    with monkeypatch.context() as patched:
        patched.setattr(UsageRecordAdmin, "get_queryset", slow)
        response = browser.get(RECORDS, {"model": "acme-chat"})
    assert (response.status_code, response["Location"]) == (302, RECORDS)
    assert "That took too long" in text_of(browser.get(RECORDS))


def test_it_shows_a_record_with_its_lines_and_adjustments(browser: Client, key: APIKey) -> None:
    lines = '[["charge", "input", 1000, "150000000", "150000"]]'
    mine = books.record(key, NOON, lines=lines, charge=150_000)
    books.adjustment(key, mine, NOON, charge=-50_000, reason="half given back")
    page = text_of(browser.get(f"{RECORDS}{mine}/change/"))
    for shown in ("0.00015 USD", "0.15", "half given back", "-0.00005 USD", "Add a correction"):
        assert shown in page


def test_it_writes_no_facts(browser: Client, key: APIKey) -> None:
    mine = books.record(key, NOON)
    for name in ("usagerecord", "hold", "process", "counter", "workitem", "deadletter"):
        assert browser.get(f"/admin/ledger/{name}/add/").status_code == 403
    for page in ("change", "delete"):
        assert browser.post(f"{RECORDS}{mine}/{page}/", {"post": "yes"}).status_code == 403


def test_it_books_a_correction(browser: Client, admin: User, key: APIKey) -> None:
    mine = books.record(key, NOON)
    page = f"/admin/ledger/adjustment/add/?request_id={mine}"
    assert str(mine) in text_of(browser.get(page))
    form = {"request_id": str(mine), "reason": "refund", "charge": "-0.0001", "cost": "", "output_tokens": "-10"}

    assert "would be" in text_of(browser.post(page, form | {"charge": "-1"}))
    assert "This field is required" in text_of(browser.post(page, form | {"reason": ""}))
    assert "no record of this request" in text_of(browser.post(page, form | {"request_id": str(UUID(int=7))}))
    assert "is not a decimal number" in text_of(browser.post(page, form | {"charge": "free"}))
    assert not Adjustment.objects.exists()
    assert browser.post(page, form).status_code == 302

    adjustment: Any = Adjustment.objects.get()
    assert (adjustment.charge, adjustment.output_tokens, adjustment.created_by) == (-100_000, -10, admin)
    assert "refund" in text_of(browser.get(f"/admin/ledger/adjustment/{adjustment.pk}/change/"))
    assert browser.post(f"/admin/ledger/adjustment/{adjustment.pk}/change/", form).status_code == 403
    assert browser.post(f"/admin/ledger/adjustment/{adjustment.pk}/delete/", {"post": "yes"}).status_code == 403


# ---- the work queue ----


def waiting(request_id: UUID, tenant: Tenant, kind: str) -> WorkItem:
    return WorkItem.objects.create(
        request_id=request_id, kind=kind, tenant=tenant, created_at=timezone.now() - timedelta(hours=3)
    )


@pytest.fixture
def model(db: None) -> Model:
    return Model.objects.create(public_id="acme-chat")


def test_it_rates_now_that_there_is_a_price(browser: Client, key: APIKey, model: Model) -> None:
    nothing = {"charge": None, "cost": None, "catalogue_model_id": model.pk}
    items = [waiting(books.record(key, NOON, **nothing), key.tenant, "unpriced") for _ in range(2)]
    page = "/admin/ledger/workitem/"
    rate = {"action": "rate_now", "_selected_action": [item.pk for item in items]}
    assert "3\xa0hours" in text_of(browser.get(page))

    refused = text_of(browser.post(page, rate, follow=True))
    assert "2 not rated: acme-chat has no price in USD that was in force at 2026-11-10 12:00 UTC" in refused
    Price.objects.create(model=model, effective_from=NOON, currency="USD", input=150_000_000, output=600_000_000)
    assert "2 rated." in text_of(browser.post(page, rate, follow=True))

    assert Adjustment.objects.filter(kind="rating", charge=510_000).count() == 2
    assert not WorkItem.objects.filter(resolved_at=None).exists()
    assert str(items[0].request_id)[-8:] not in text_of(browser.get(page))
    assert str(items[0].request_id)[-8:] in text_of(browser.get(page, {"state": "resolved"}))


def test_it_resolves_an_unknown_record(browser: Client, key: APIKey, model: Model) -> None:
    price = Price.objects.create(model=model, effective_from=NOON, currency="USD", input=10**8, output=10**8)
    record = books.record(
        key, NOON, status="unknown", charge=0, cost=0, charge_price_id=price.pk, catalogue_model_id=model.pk
    )
    item = waiting(record, key.tenant, "unknown")
    page = f"/admin/ledger/workitem/{item.pk}/resolve/"
    form = {"answer": "charged", "input_tokens": "1000", "output_tokens": "100", "reason": "it was billed"}

    assert "What became of this request?" in text_of(browser.get(page))
    assert "This field is required" in text_of(browser.post(page, form | {"reason": ""}))
    response = browser.post(page, form, follow=True)
    assert "is resolved." in text_of(response)

    adjustment: Any = Adjustment.objects.get()
    assert (adjustment.kind, adjustment.charge, adjustment.output_tokens) == ("resolution", 135_000, -400)
    assert "Only open records" in text_of(browser.post(page, form, follow=True))


def test_it_leaves_decisions_to_those_who_may_adjust(finance: User, key: APIKey, model: Model) -> None:
    client = Client()
    client.force_login(finance)
    record = books.record(key, NOON, charge=None, catalogue_model_id=model.pk)
    item = waiting(record, key.tenant, "unpriced")
    Price.objects.create(model=model, effective_from=NOON, currency="USD", input=1, output=1)

    assert client.get(RECORDS).status_code == 200
    assert "rate_now" not in text_of(client.get("/admin/ledger/workitem/"))
    client.post("/admin/ledger/workitem/", {"action": "rate_now", "_selected_action": [item.pk]})
    assert client.get(f"/admin/ledger/workitem/{item.pk}/resolve/").status_code == 403
    assert client.get(f"/admin/ledger/adjustment/add/?request_id={record}").status_code == 403
    assert not Adjustment.objects.exists()


# ---- operations ----


def test_it_shows_processes_and_dead_letters(browser: Client, db: None) -> None:
    now = timezone.now()
    ages = {"alive": 0, "late": 60}
    for number, (host, age) in enumerate(ages.items()):
        at = now - timedelta(seconds=age)
        Process.objects.create(id=UUID(int=number), host=host, pid=1, started_at=at, heartbeat_at=at)
    page = text_of(browser.get("/admin/ledger/process/")).lower()
    assert all(page.count(state) >= 2 for state in ages)

    letter = DeadLetter.objects.create(request_id=UUID(int=9), payload={}, error="refused for good")
    page_url = "/admin/ledger/deadletter/"
    assert "refused for good" in text_of(browser.get(page_url))
    browser.post(page_url, {"action": "mark_resolved", "_selected_action": [letter.pk]})
    assert "refused for good" not in text_of(browser.get(page_url))
