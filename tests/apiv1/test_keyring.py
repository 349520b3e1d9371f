"""The key ring alone, on a reader that counts what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from apiv1 import keyring
from apiv1.keyring import KeyRing
from gateway import snapshots
from gateway.errors import InternalError, Unavailable
from tenants.facts import Caller

ANN = Caller(
    key_id=1,
    public_id="annannannann",
    key_name="laptop",
    key_version=1,
    key_active=True,
    key_expires_at=None,
    key_models=("*",),
    secrets=((b"d" * 32, None),),
    tenant_id=1,
    tenant="acme",
    tenant_version=1,
    tenant_status="active",
    tenant_models=("*",),
    timezone="UTC",
    currency="USD",
)


class Reader:
    """Stands for `snapshots.read`: rows in a dict, every query noted, held back until `gate` is set."""

    def __init__(self) -> None:
        self.rows: dict[str, Caller] = {ANN.public_id: ANN}
        self.imported: dict[bytes, Caller] = {}
        self.queries: list[list[str]] = []
        self.imports = 0
        self.fault: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        if args:
            self.queries.append(list(args[0]))
            found: Any = {name: self.rows[name] for name in args[0] if name in self.rows}
        else:
            self.imports += 1
            found = dict(self.imported)
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        return found


@pytest.fixture
async def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    fake = Reader()
    monkeypatch.setattr(snapshots, "read", fake)
    monkeypatch.setattr(keyring, "SPACING_SECONDS", 0.0)
    return fake


async def test_it_asks_once_for_a_known_key(reader: Reader) -> None:
    ring = KeyRing()
    assert [await ring.find(ANN.public_id) for _ in range(3)] == [ANN] * 3
    assert reader.queries == [[ANN.public_id]]


async def test_it_asks_once_for_an_unknown_key(reader: Reader) -> None:
    ring = KeyRing()
    assert [await ring.find("nobody") for _ in range(3)] == [None] * 3
    assert reader.queries == [["nobody"]]


async def test_it_asks_again_for_an_unknown_key_after_a_while(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "UNKNOWN_SECONDS", 0.0)
    ring = KeyRing()
    assert await ring.find(ANN.public_id + "x") is None
    reader.rows[ANN.public_id + "x"] = ANN
    assert await ring.find(ANN.public_id + "x") == ANN


async def test_it_shares_one_look_up_among_those_who_ask_together(reader: Reader) -> None:
    ring = KeyRing()
    found = await asyncio.gather(*(ring.find(ANN.public_id) for _ in range(50)), *(ring.find("x") for _ in range(50)))
    assert found == [ANN] * 50 + [None] * 50
    assert reader.queries == [[ANN.public_id, "x"]]


async def test_it_joins_a_look_up_under_way(reader: Reader) -> None:
    ring = KeyRing()
    reader.gate.clear()
    first = asyncio.create_task(ring.find(ANN.public_id))
    while not reader.queries:
        await asyncio.sleep(0)
    second = asyncio.create_task(ring.find(ANN.public_id))
    await asyncio.sleep(0)
    reader.gate.set()
    assert await asyncio.gather(first, second) == [ANN, ANN]
    assert len(reader.queries) == 1


async def test_it_rereads_by_a_query_that_begins_later(reader: Reader) -> None:
    ring = KeyRing()
    reader.gate.clear()
    first = asyncio.create_task(ring.find(ANN.public_id))
    while not reader.queries:
        await asyncio.sleep(0)
    revoked = reader.rows[ANN.public_id] = replace(ANN, key_active=False, key_version=2)
    second = asyncio.create_task(ring.reread(ANN.public_id))
    await asyncio.sleep(0)
    reader.gate.set()
    assert await first == ANN
    assert await second == revoked
    assert await ring.find(ANN.public_id) == revoked
    assert len(reader.queries) == 2


async def test_it_forgets_a_key_that_is_gone(reader: Reader) -> None:
    ring = KeyRing()
    await ring.find(ANN.public_id)
    del reader.rows[ANN.public_id]
    assert await ring.reread(ANN.public_id) is None
    assert await ring.find(ANN.public_id) is None


async def test_a_client_that_leaves_takes_nothing_from_the_others(reader: Reader) -> None:
    ring = KeyRing()
    reader.gate.clear()
    leaving = asyncio.create_task(ring.find(ANN.public_id))
    staying = asyncio.create_task(ring.find(ANN.public_id))
    while not reader.queries:
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    reader.gate.set()
    assert await staying == ANN


async def test_it_looks_up_at_most_fifty_times_a_second(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "SPACING_SECONDS", 0.02)
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    now = 1000.0
    monkeypatch.setattr(keyring.time, "monotonic", lambda: now)
    monkeypatch.setattr(keyring.asyncio, "sleep", noted)
    ring = KeyRing()
    for number in range(5):
        await ring.find(f"unknown{number}")
    assert len(reader.queries) == 5
    assert pauses == pytest.approx([0.02] * 4)


async def test_a_flood_is_looked_up_in_batches(reader: Reader) -> None:
    ring = KeyRing()
    await asyncio.gather(*(ring.find(f"unknown{number}") for number in range(1200)))
    assert [len(ids) for ids in reader.queries] == [500, 500, 200]


async def test_it_refuses_when_too_many_wait(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "WAITING", 3)
    ring = KeyRing()
    found = await asyncio.gather(*(ring.find(f"unknown{number}") for number in range(5)), return_exceptions=True)
    assert [type(result) for result in found] == [type(None)] * 3 + [Unavailable] * 2


async def test_it_bounds_what_it_remembers(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "UNKNOWN", 10)
    monkeypatch.setattr(keyring, "KNOWN", 2)
    ring = KeyRing()
    reader.rows = {name: replace(ANN, public_id=name) for name in "abc"}
    await asyncio.gather(*(ring.find(f"unknown{number}") for number in range(100)))
    for name in "abac":
        await ring.find(name)
    assert len(ring._unknown) == 10
    assert list(ring._known) == ["a", "c"]  # b was used longest ago


@pytest.mark.parametrize(("fault", "answer"), [(Unavailable("away"), Unavailable), (ValueError("x"), InternalError)])
async def test_it_says_why_it_cannot_look_up(reader: Reader, fault: Exception, answer: type[Exception]) -> None:
    ring = KeyRing()
    await ring.find(ANN.public_id)
    reader.fault = fault
    with pytest.raises(answer):
        await ring.find("somebody")
    assert await ring.find(ANN.public_id) == ANN  # known keys need no database
    reader.fault = None
    assert await ring.find("somebody") is None


async def test_it_finds_imported_secrets_without_a_query_each(reader: Reader) -> None:
    reader.imported = {b"old": ANN}
    ring = KeyRing()
    assert await ring.find_imported(b"old") == ANN
    for _ in range(20):
        assert await ring.find_imported(b"other") is None
    assert (reader.imports, reader.queries) == (1, [])


async def test_it_shares_the_first_reading_of_imported_secrets(reader: Reader) -> None:
    reader.imported = {b"old": ANN}
    ring = KeyRing()
    assert await asyncio.gather(*(ring.find_imported(b"old") for _ in range(9))) == [ANN] * 9
    assert reader.imports == 1


async def test_it_learns_of_imports_when_the_catalogue_moves(reader: Reader) -> None:
    ring = KeyRing()
    assert await ring.find_imported(b"new") is None
    reader.imported = {b"new": ANN}
    await ring.refresh_imported()
    assert await ring.find_imported(b"new") == ANN


async def test_it_learns_of_imports_by_itself_after_a_while(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing()
    assert await ring.find_imported(b"new") is None
    reader.imported = {b"new": ANN}
    monkeypatch.setattr(keyring, "IMPORTED_SECONDS", 0.0)
    assert await ring.find_imported(b"new") == ANN


async def test_it_keeps_the_imported_secrets_when_the_database_goes(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader.imported = {b"old": ANN}
    ring = KeyRing()
    await ring.find_imported(b"old")
    reader.fault = Unavailable("away")
    monkeypatch.setattr(keyring, "IMPORTED_SECONDS", 0.0)
    assert await ring.find_imported(b"other") is None
    assert await ring.find_imported(b"old") == ANN


async def test_it_cannot_judge_imported_secrets_before_it_has_read_them(reader: Reader) -> None:
    reader.fault = Unavailable("away")
    with pytest.raises(Unavailable):
        await KeyRing().find_imported(b"any")


def test_it_survives_the_end_of_an_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "SPACING_SECONDS", 0.0)
    ring = KeyRing()

    async def hang(function: Any, *args: Any) -> Any:
        await asyncio.Event().wait()

    async def left() -> None:
        monkeypatch.setattr(snapshots, "read", hang)
        task = asyncio.create_task(ring.find("a"))
        await asyncio.sleep(0)
        task.cancel()

    async def asked() -> None:
        monkeypatch.setattr(snapshots, "read", Reader())
        assert await ring.find(ANN.public_id) == ANN

    asyncio.run(left())
    asyncio.run(asked())
