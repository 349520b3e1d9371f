"""The admin's export page: who sees it, what it says, and the file."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import AsyncClient, Client
from django.urls import reverse

from tests.billing import books

PERIOD = {"first": "2026-11-01", "last": "2026-11-30", "by": "day"}


def staff(name: str, *permissions: str) -> User:
    user = User.objects.create_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


def page(user: User | None, **parameters: Any) -> Any:
    client = Client()
    if user is not None:
        client.force_login(user)
    return client.get(reverse("reports:export"), parameters)


@pytest.mark.django_db
def test_it_begins_with_this_month() -> None:
    answer = page(staff("fiona", "view_usagerecord"))
    assert answer.status_code == 200
    text = answer.content.decode()
    assert 'name="first"' in text
    assert 'type="date"' in text
    assert answer.context["form"].initial["by"] == "day"
    assert answer.context["form"].initial["first"].endswith("-01")


@pytest.mark.django_db
def test_only_staff_who_may_read_the_books_sees_it() -> None:
    assert page(staff("stan", "view_adjustment"), **PERIOD).status_code == 403
    for user in (None, User.objects.create_user("olga")):
        answer = page(user, **PERIOD)
        assert answer.status_code == 302
        assert answer["location"].startswith(reverse("admin:login"))


@pytest.mark.django_db
@pytest.mark.parametrize(
    "parameters, field, complaint",
    [
        ({"first": "2026-12-01"}, "first", "ends before it begins"),
        ({"last": "soon"}, "last", "write YYYY-MM-DD"),
        ({"tenant": "nobody"}, "tenant", "no tenant"),
        ({"first": ""}, "first", "required"),
    ],
)
def test_it_says_at_the_field_what_is_wrong(parameters: dict[str, str], field: str, complaint: str) -> None:
    answer = page(staff("fiona", "view_usagerecord"), **(PERIOD | parameters))
    assert answer.status_code == 400
    assert complaint in str(answer.context["form"].errors[field])
    assert complaint in answer.content.decode()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("excel", ["", "on"])
async def test_it_streams_the_file(excel: str) -> None:
    from asgiref.sync import sync_to_async

    def arrange() -> User:
        books.record(books.key(books.tenant("acme")))
        books.record(books.key(books.tenant("globex")))
        return staff("fiona", "view_usagerecord")

    client = AsyncClient()
    await client.aforce_login(await sync_to_async(arrange)())
    answer = await client.get(reverse("reports:export"), {**PERIOD, "tenant": "acme", "excel": excel})
    assert answer.status_code == 200
    assert answer["content-disposition"].endswith('filename="usage-acme-2026-11-01-2026-11-30-by-day.csv"')
    assert "no-store" in answer["cache-control"]
    content = b"".join([chunk async for chunk in answer.streaming_content])
    assert content.startswith(b"\xef\xbb\xbfline,kind," if excel else b"line,kind,")
    text = content.decode("utf-8-sig")
    assert ",acme," in text
    assert "globex" not in text
    assert text.splitlines()[-1].startswith("total,")
