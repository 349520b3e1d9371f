"""Dead processes: two looks a lease apart, never one, and never a process that beats again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from django.db import connection
from django.utils import timezone

from gateway.ledger.items import Order
from gateway.ledger.link import Link
from gateway.ledger.models import Counter, Hold, Process, UsageRecord, WorkItem
from gateway.ledger.partitions import ensure
from gateway.ledger.sweeper import sweep
from gateway.ledger.verification import verify

MakeOrder = Callable[..., Order]


@pytest.fixture
def held(order: MakeOrder) -> UUID:
    """A hold, and the process that made it."""
    link = Link(uuid4())
    link.connect()
    link.call([order().admission()], skip=False, retry=False)
    link.close()
    return link.process_id


def silent_for(process_id: UUID, **ago: float) -> None:
    Process.objects.filter(id=process_id).update(heartbeat_at=timezone.now() - timedelta(**ago))


def test_it_leaves_a_living_process_alone(held: UUID) -> None:
    assert [sweep(lease_seconds=0.0) for _ in range(1)] == [0]
    Process.objects.update(heartbeat_at=timezone.now(), suspected_at=None)
    assert sweep() == 0
    assert Hold.objects.count() == 1


def test_one_look_is_not_enough(held: UUID) -> None:
    """After an outage of the database every heartbeat is old, and everybody is alive."""
    silent_for(held, hours=1)
    assert sweep() == 0
    assert sweep() == 0  # a second look at once is not a lease apart
    assert Process.objects.get().suspected_at is not None


def test_a_heartbeat_between_the_looks_clears_the_suspicion(held: UUID) -> None:
    silent_for(held, hours=1)
    sweep()
    Process.objects.update(suspected_at=timezone.now() - timedelta(minutes=1))
    link = Link(held)
    link.connect()  # beats
    link.close()
    assert sweep() == 0
    assert Process.objects.get().suspected_at is None
    assert Hold.objects.count() == 1


def test_a_process_seen_dead_twice_loses_its_holds_to_unknown_records(held: UUID) -> None:
    silent_for(held, hours=1)
    sweep()
    Process.objects.update(suspected_at=timezone.now() - timedelta(minutes=1))
    assert sweep() == 1
    assert sweep() == 0
    record = UsageRecord.objects.get()
    assert (record.status, record.charge, record.cost, record.estimated) == ("unknown", 0, 0, True)
    assert (record.input_tokens, record.output_tokens) == (1000, 2000)
    assert WorkItem.objects.get().kind == "unknown"
    assert {(c.held_requests, c.held, c.requests) for c in Counter.objects.all()} == {(0, 0, 1)}
    assert verify().drift == []


def test_a_process_that_ended_in_order_is_swept_at_once(held: UUID) -> None:
    Process.objects.update(ended_at=timezone.now())
    assert sweep() == 1


def test_a_hold_without_a_process_is_swept_in_the_end(held: UUID) -> None:
    Process.objects.all().delete()
    Hold.objects.update(started_at=timezone.now() - timedelta(hours=1))
    sweep()
    Process.objects.update(suspected_at=timezone.now() - timedelta(minutes=1))
    assert sweep() == 1


def test_verify_ledger_names_a_hold_that_the_sweeper_should_have_taken(held: UUID) -> None:
    silent_for(held, hours=1)
    Hold.objects.update(started_at=timezone.now() - timedelta(hours=1))
    assert "its process" in verify().drift[0]


def test_verify_ledger_finds_every_counter_that_lies(held: UUID) -> None:
    for name in ("requests", "tokens", "charge", "held_requests", "held"):
        before = getattr(Counter.objects.get(scope="key"), name)
        Counter.objects.filter(scope="key").update(**{name: before + 1})
        assert any(f"{name} is" in line for line in verify().drift)
        Counter.objects.filter(scope="key").update(**{name: before})
    assert verify().drift == []


def test_partitions_are_made_ahead_once(transactional_db: None) -> None:
    assert ensure(months_ahead=5) >= 0
    assert ensure(months_ahead=5) == 0
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_inherits WHERE inhparent = 'ledger_usagerecord'::regclass")
        (count,) = cursor.fetchone()
    assert count >= 1 + 5 + 1 + 1  # last month, this one and five more, and the net; other tests may make more
