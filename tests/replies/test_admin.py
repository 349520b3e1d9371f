"""In the admin: that an answer is kept, whose, until when; never what it says."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from gateway.replies.models import KeptReply, sealed
from tenants.models import Tenant
from tests.cast import acme, admin, browser, finance, globex

__all__ = ["acme", "admin", "browser", "finance", "globex"]
LIST = "/admin/replies/keptreply/"


@pytest.fixture
def reply(acme: Tenant) -> KeptReply:
    now = timezone.now()
    return KeptReply.objects.create(
        tenant=acme,
        key_digest=b"k" * 32,
        body_digest=b"b" * 32,
        request_id=uuid.uuid4(),
        process_id=uuid.uuid4(),
        state="kept",
        stream=True,
        content=sealed(b"a secret fox", b"k" * 32),
        size=12,
        created_at=now,
        expires_at=now + timedelta(hours=24),
    )


def text_of(response: Any) -> str:
    assert response.status_code == 200
    return str(response.content.decode())


def test_it_lists_facts_and_never_reads_the_content(browser: Client, reply: KeptReply, globex: Tenant) -> None:
    with CaptureQueriesContext(
        connection,
    ) as queries:
        page = text_of(browser.get(LIST))
        form = text_of(browser.get(f"{LIST}{reply.pk}/change/"))
    assert str(reply.request_id) in page
    assert "acme" in page
    for text in (page, form):
        assert "fox" not in text
        assert bytes(reply.content).decode() not in text
    assert not any('"content"' in query["sql"] for query in queries)
    assert str(reply.request_id) not in text_of(browser.get(f"{LIST}?tenant__id__exact={globex.pk}"))


def test_deleting_asks_first(browser: Client, reply: KeptReply) -> None:
    chosen = {"action": "delete_selected", "_selected_action": [reply.pk]}
    assert "Are you sure" in text_of(browser.post(LIST, chosen))
    assert KeptReply.objects.exists()
    browser.post(LIST, {**chosen, "post": "yes"})
    assert not KeptReply.objects.exists()


def test_nothing_can_be_added_or_changed(browser: Client, reply: KeptReply) -> None:
    assert browser.get(f"{LIST}add/").status_code == 403
    browser.post(f"{LIST}{reply.pk}/change/", {"state": "running"})
    reply.refresh_from_db()
    assert reply.state == "kept"


def test_who_has_no_right_sees_nothing(finance: User, reply: KeptReply) -> None:
    client = Client()
    client.force_login(finance)
    assert client.get(LIST).status_code == 403
