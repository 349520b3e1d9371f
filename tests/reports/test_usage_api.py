"""`GET /api/usage/` and `/api/usage/export/`: who may, what comes, and that no whole file is ever in memory."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.db import connection
from django.test import AsyncClient, Client
from rest_framework.authtoken.models import Token

from gateway.reports import request_lines
from gateway.reports.asking import Asked
from tests.billing import books

pytestmark = pytest.mark.django_db(transaction=True)

PERIOD = {"from": "2026-11-01", "to": "2026-11-30"}


@pytest.fixture
def group() -> Group:
    """As the migration makes it; a flush between tests takes it away."""
    finance, _ = Group.objects.get_or_create(name="Finance")
    finance.permissions.set(Permission.objects.filter(codename__in=["view_usagerecord", "view_adjustment"]))
    return finance


def token_of(user: User) -> dict[str, str]:
    return {"authorization": f"Token {Token.objects.create(user=user).key}"}


@pytest.fixture
def fiona(group: Group) -> dict[str, str]:
    user = User.objects.create_user("fiona")
    user.groups.add(group)
    return token_of(user)


def get(headers: dict[str, str] | None = None, path: str = "/api/usage/", **parameters: Any) -> Any:
    return Client().get(path, PERIOD | parameters, headers=headers)


def test_it_lists_requests_newest_first(fiona: dict[str, str]) -> None:
    key = books.key(books.tenant("acme", timezone="Europe/Berlin"))
    first = books.record(key)
    second = books.record(key, books.NOON + timedelta(hours=1), charge=None)
    books.adjustment(key, first, charge=-1)
    answer = get(fiona)
    assert answer.status_code == 200
    assert answer["content-type"] == "application/json"
    body = answer.json()
    assert body["next"] is None
    lines = body["results"]
    assert [(line["line"], line["request_id"], line["charge"]) for line in lines] == [
        ("usage", f"req_{second.hex}", None),
        ("usage", f"req_{first.hex}", "0.000495"),
        ("adjustment", f"req_{first.hex}", "-0.000000001"),
    ]
    assert (lines[1]["tenant"], lines[1]["key_id"], lines[1]["local_date"]) == ("acme", key.public_id, "2026-11-10")
    assert lines[1]["cost"] == "0.0003"


def test_it_sums_by_day_whether_or_not_the_rollup_has_run(fiona: dict[str, str]) -> None:
    keys = [books.key(books.tenant(slug)) for slug in ("acme", "globex")]
    for number in range(12):
        books.record(keys[number % 2], books.NOON + timedelta(hours=12 * number), charge=number)
    before = get(fiona, by="day").json()
    books.settle_rollups()
    late = books.record(keys[0])
    books.adjustment(keys[0], late, charge=-7)
    after = get(fiona, by="day").json()
    assert len(before["results"]) == 12
    assert len(after["results"]) == 13
    assert sum(line["requests"] for line in after["results"]) == 13
    adjusted = [line for line in after["results"] if line["kind"]]
    assert [(line["charge"], line["requests"], line["adjustments"]) for line in adjusted] == [("-0.000000007", 0, 1)]


@pytest.mark.parametrize("by", ["request", "day"])
def test_its_pages_are_the_whole(fiona: dict[str, str], by: str) -> None:
    keys = [books.key(books.tenant(slug)) for slug in ("acme", "globex")]
    for number in range(11):
        started = books.NOON + timedelta(hours=11 * number)
        request_id = books.record(keys[number % 2], started)
        if number % 4 == 0:
            books.adjustment(keys[number % 2], request_id, started, charge=1)
    books.settle_rollups()
    whole = get(fiona, by=by).json()["results"]
    assert len(whole) == 14
    for limit in (1, 3, 11):
        pages = list(_follow(fiona, get(fiona, by=by, limit=limit).json()))
        assert [line for page in pages for line in page] == whole
        assert len(pages) > 1 or limit == 11


def _follow(headers: dict[str, str], body: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    yield body["results"]
    while body["next"]:
        assert body["next"].startswith("http://testserver/api/usage/?")
        body = Client().get(body["next"].removeprefix("http://testserver"), headers=headers).json()
        yield body["results"]


def test_all_pages_are_of_the_state_of_the_first(fiona: dict[str, str]) -> None:
    key = books.key(books.tenant("acme"))
    for number in range(3):
        books.record(key, books.NOON + timedelta(minutes=number))
    page = get(fiona, limit=2).json()
    books.record(key, books.NOON - timedelta(minutes=1))
    assert sum(len(lines) for lines in _follow(fiona, page)) == 3


def test_the_neighbour_is_filtered_out(fiona: dict[str, str]) -> None:
    acme, globex = books.key(books.tenant("acme")), books.key(books.tenant("globex"))
    books.record(acme)
    for by in ("request", "day"):
        assert get(fiona, by=by, tenant="globex").json()["results"] == []
        assert get(fiona, by=by, key=globex.public_id).json()["results"] == []
        assert len(get(fiona, by=by, tenant="acme", key=acme.public_id, model="acme-chat").json()["results"]) == 1
    assert get(fiona, status="failed").json()["results"] == []


@pytest.mark.parametrize(
    "parameters, complaint",
    [
        ({"from": ""}, {"from": ["This field is required."]}),
        ({"from": "1.2.2026"}, {"from": ["'1.2.2026' is not a day: write YYYY-MM-DD, such as 2026-11-30."]}),
        ({"to": "2026-10-01"}, {"from": ["The period ends before it begins: from 2026-11-01 to 2026-10-01."]}),
        ({"tenant": "nobody"}, {"tenant": ["There is no tenant 'nobody'."]}),
        ({"key": "nokey"}, {"key": ["There is no API key with the id 'nokey'."]}),
        ({"by": "day", "status": "failed"}, {"status": ["A status belongs to a request: use by=request, …"]}),
        ({"by": "week"}, {"by": ["Select a valid choice. week is not one of the available choices."]}),
        ({"limit": "0"}, {"limit": ["'0' is not a whole number from 1 to 1000."]}),
        ({"cursor": "abc"}, {"cursor": ["This is no cursor of this list: follow `next` of the page before."]}),
        ({"tennant": "acme"}, {"tennant": ["There is no such parameter. There are: …"]}),
    ],
)
def test_it_says_what_is_wrong(fiona: dict[str, str], parameters: Any, complaint: dict[str, list[str]]) -> None:
    answer = get(fiona, **parameters)
    assert answer.status_code == 400
    ((name, (expected,)),) = complaint.items()
    (said,) = answer.json()[name]
    assert said.startswith(expected.removesuffix("…"))
    if set(parameters) & {"limit", "cursor"}:
        return
    assert get(fiona, "/api/usage/export/", **parameters).json() == answer.json()


@pytest.mark.parametrize("path", ["/api/usage/", "/api/usage/export/", "/api/nowhere"])
def test_only_who_may_read_the_books_comes_in(path: str, fiona: dict[str, str]) -> None:
    books.record(books.key(books.tenant("acme")))
    anonymous = get(None, path)
    assert (anonymous.status_code, anonymous["www-authenticate"]) == (401, "Token")
    assert "Authorization: Token" in anonymous.json()["detail"]
    wrong = get({"authorization": "Token nonsense"}, path)
    assert wrong.status_code == 401
    assert "Invalid token." in wrong.json()["detail"]
    stranger = get(token_of(User.objects.create_user("stan", is_staff=True)), path)
    assert stranger.status_code == 403
    assert "group Finance" in stranger.json()["detail"]
    # a tenant's key opens nothing here
    assert get({"authorization": "Bearer sk-cf-abc"}, path).status_code == 401
    assert get(fiona, path).status_code == (404 if "nowhere" in path else 200)


def test_a_user_who_left_is_out(fiona: dict[str, str]) -> None:
    User.objects.filter(username="fiona").update(is_active=False)
    assert get(fiona).status_code == 401


def test_it_is_described_by_openapi_without_a_token() -> None:
    answer = Client().get("/api/schema/?format=json")
    assert answer.status_code == 200
    schema = answer.json()
    assert set(schema["paths"]) == {"/api/usage/", "/api/usage/export/"}
    names = {parameter["name"] for parameter in schema["paths"]["/api/usage/"]["get"]["parameters"]}
    assert names == {"from", "to", "by", "tenant", "key", "model", "status", "limit", "cursor"}
    assert schema["paths"]["/api/usage/export/"]["get"]["responses"]["200"]["content"].keys() == {"text/csv"}
    assert schema["components"]["schemas"]["DayLine"]["properties"]["charge"]["type"] == "string"


def test_a_browser_gets_a_page_that_loads_nothing_from_elsewhere(fiona: dict[str, str]) -> None:
    answer = get({**fiona, "accept": "text/html"})
    assert answer["content-type"].startswith("text/html")
    page = answer.content.decode()
    loaded = [part.split('"')[0] for mark in ('src="', '<link rel="stylesheet" type="text/css" href="')
              for part in page.split(mark)[1:]]  # fmt: skip
    assert loaded
    assert all(address.startswith("/static/") for address in loaded)


# ---- the streamed file ------------------------------------------------------------------------------------


async def export(headers: dict[str, str], **parameters: Any) -> tuple[Any, list[bytes]]:
    answer = await AsyncClient().get("/api/usage/export/", PERIOD | parameters, headers=headers)
    assert answer.status_code == 200, answer.content
    content = answer.streaming_content
    assert isinstance(content, AsyncIterator)
    return answer, [chunk async for chunk in content]


async def test_the_export_is_a_csv_file_of_the_same_lines(fiona: dict[str, str]) -> None:
    from asgiref.sync import sync_to_async

    def arrange() -> None:
        acme = books.key(books.tenant("acme"))
        books.adjustment(acme, books.record(acme), charge=3)
        books.record(books.key(books.tenant("globex")))

    await sync_to_async(arrange)()
    answer, chunks = await export({**fiona, "accept": "text/csv"}, tenant="acme")
    assert answer["content-type"] == "text/csv; charset=utf-8"
    name = "usage-acme-2026-11-01-2026-11-30-by-request.csv"
    assert answer["content-disposition"] == f'attachment; filename="{name}"'
    rows = list(csv.DictReader(io.StringIO(b"".join(chunks).decode())))
    assert [(row["line"], row["tenant"]) for row in rows if row["line"] != "total"] == [
        ("usage", "acme"),
        ("adjustment", "acme"),
    ]
    assert rows[-1]["control"].startswith("sha256=")


async def test_the_export_comes_page_by_page(fiona: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page is made when the one before was taken, and no connection is kept between them."""
    from asgiref.sync import sync_to_async

    def arrange() -> None:
        key = books.key(books.tenant("acme"))
        for number in range(30):
            books.record(key, books.NOON + timedelta(minutes=number))

    await sync_to_async(arrange)()
    made = 0
    whole = request_lines.pages

    def counted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        nonlocal made
        for page in whole(*args, rows=10):
            made += 1
            yield page

    monkeypatch.setattr(request_lines, "pages", counted)
    answer = await AsyncClient().get("/api/usage/export/", PERIOD, headers=fiona)
    assert made == 0
    seen = []
    async for _ in answer.streaming_content:
        seen.append(made)
        assert await sync_to_async(lambda: connection.connection)() is None or len(seen) == 1
    assert seen == [0, 1, 2, 3, 4]


def test_a_restored_ledger_is_refused_before_the_file_begins(fiona: dict[str, str]) -> None:
    key = books.key(books.tenant("acme"))
    books.record(key, recorded_xid=str(2**60))
    for path in ("/api/usage/", "/api/usage/export/"):
        answer = get(fiona, path)
        assert answer.status_code == 503
        assert "pg_resetwal" in answer.json()["detail"]


def test_a_name_for_the_file_holds_only_what_was_asked() -> None:
    asked = Asked(first="2026-11-01", last="2026-11-30", by="day", tenant="acme", key="abc")
    assert asked.filename() == "usage-acme-abc-2026-11-01-2026-11-30-by-day.csv"
    assert asked.described() == "tenant=acme key=abc"
