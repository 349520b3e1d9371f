"""Active probes: who is asked when, and what the answer does to the breaker. Providers answer over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import pytest
from django.db.models import F
from django.utils import timezone

from gateway.catalogue.models import Deployment, Model, Provider
from gateway.failover import circuits, housekeeping, probing
from gateway.failover.circuits import Author
from gateway.failover.models import Circuit, HealthEvent, RecentResults
from gateway.failover.probing import probe_due
from gateway.ledger.models import Hold, UsageRecord
from gateway.upstreams import addresses

LIST = '{"object": "list", "data": [{"id": "acme-chat-2026-01"}]}'
ELSEWHERE = Author(uuid4(), "another process")


class Directory(ThreadingHTTPServer):
    """A provider's list of models, or what stands in its place. `answer` None: it never answers."""

    answer: tuple[int, str] | None = (200, LIST)

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.over = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Directory

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        if self.server.answer is None:
            self.server.over.wait(60)
            return
        status, text = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _loopback() -> Iterator[None]:
    before = addresses.rules()
    addresses.configure(allow_private=False, allow_loopback=True)
    yield
    addresses.configure(allow_private=before.allow_private, allow_loopback=before.allow_loopback)


@pytest.fixture
def directory(deployment: Deployment) -> Iterator[Directory]:
    with Directory() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        Provider.objects.update(base_url=f"http://127.0.0.1:{server.server_port}/v1")
        Deployment.objects.update(probe_every_s=30)
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def be_due() -> None:
    """As if the interval had passed, and an opening too."""
    Circuit.objects.update(
        probed_at=F("probed_at") - timedelta(minutes=1), open_until=F("open_until") - timedelta(minutes=2)
    )


def opened(deployment: Deployment) -> None:
    assert circuits.open_it(ELSEWHERE, deployment.pk, reason="5 failures in a row")


def test_it_asks_each_in_its_time_and_books_nothing(directory: Directory, deployment: Deployment) -> None:
    assert [probe_due() for _ in range(3)] == [1, 0, 0]
    assert directory.asked == [("/v1/models", "Bearer sk-theirs")]
    be_due()
    assert probe_due() == 1
    assert Circuit.objects.get().probe_outcome == "it lists its models (1)"
    assert not HealthEvent.objects.exists()
    assert not UsageRecord.objects.exists() and not Hold.objects.exists()


def test_it_asks_a_provider_once_for_all_its_deployments(directory: Directory, deployment: Deployment) -> None:
    for number in range(3):
        Deployment.objects.create(
            model=deployment.model, provider=deployment.provider, upstream_model=f"u{number}", probe_every_s=5
        )
    assert probe_due() == 4
    assert len(directory.asked) == 1
    assert Circuit.objects.exclude(probe_outcome="").count() == 4


@pytest.mark.parametrize("what", ["no interval", "disabled", "provider disabled", "model disabled", "echo"])
def test_it_leaves_the_others_alone(directory: Directory, deployment: Deployment, what: str) -> None:
    if what == "no interval":
        Deployment.objects.update(probe_every_s=None)
    elif what == "disabled":
        Deployment.objects.update(enabled=False)
    elif what == "model disabled":
        Model.objects.update(enabled=False)
    elif what == "echo":
        Provider.objects.update(protocol="echo")
    else:
        Provider.objects.update(enabled=False)
    assert probe_due() == 0
    assert directory.asked == []


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ((401, "no"), "it refused the credential (status 401)"),
        ((500, "no"), "status 500"),
        ((503, "no"), "status 503"),
        (None, "it did not answer in time"),
    ],
)
def test_it_opens_after_three_bad_ones(
    directory: Directory,
    deployment: Deployment,
    monkeypatch: pytest.MonkeyPatch,
    answer: tuple[int, str] | None,
    outcome: str,
) -> None:
    if answer is None:
        monkeypatch.setattr(probing, "TIMEOUT_S", 0.3)
    directory.answer = answer
    for number in range(3):
        assert not Circuit.objects.filter(state="open").exists()
        assert probe_due() == 1
        assert Circuit.objects.get().probe_failures == number + 1
        be_due()
    circuit = Circuit.objects.get()
    assert circuit.state == "open" and circuit.reason == f"3 probes of ours failed in a row: {outcome}"
    assert HealthEvent.objects.get().after == "open"


def test_it_opens_for_one_that_nobody_answers_for(directory: Directory, deployment: Deployment) -> None:
    Provider.objects.update(base_url="http://127.0.0.1:1/v1")
    for _ in range(3):
        assert probe_due() == 1
        be_due()
    assert Circuit.objects.get().reason.endswith("it could not be reached")


@pytest.mark.parametrize("answer", [(404, "no"), (405, "no"), (200, LIST)])
def test_it_closes_when_a_good_one_comes_in_its_turn(
    directory: Directory, deployment: Deployment, answer: tuple[int, str]
) -> None:
    directory.answer = answer
    opened(deployment)
    assert probe_due() == 1
    assert Circuit.objects.get().state == "open"  # it is left alone for its five seconds
    be_due()
    assert probe_due() == 1
    assert Circuit.objects.get().state == "closed"
    last = HealthEvent.objects.order_by("-id")[0]
    assert (last.before, last.after, last.reason) == ("half_open", "closed", "a probe of ours was good")


def test_it_opens_for_longer_when_it_fails_right_after(directory: Directory, deployment: Deployment) -> None:
    """A provider that lists its models, and cannot answer."""
    opened(deployment)
    for openings in (2, 3, 4):
        be_due()
        assert probe_due() == 1
        opened(deployment)
        assert Circuit.objects.get().openings == openings
    Circuit.objects.update(since=timezone.now() - timedelta(minutes=6), state="closed")
    opened(deployment)
    assert Circuit.objects.get().openings == 1


def test_it_waits_longer_with_each_bad_one(directory: Directory, deployment: Deployment) -> None:
    directory.answer = (500, "no")
    opened(deployment)
    for openings in (2, 3):
        be_due()
        assert probe_due() == 1
        assert Circuit.objects.get().openings == openings


def test_it_says_nothing_where_it_learnt_nothing(directory: Directory, deployment: Deployment) -> None:
    opened(deployment)
    for answer in ((200, "<html>log in</html>"), (429, "slowly"), (302, "elsewhere")):
        be_due()
        directory.answer = answer
        assert probe_due() == 1
        circuit = Circuit.objects.get()
        assert (circuit.state, circuit.openings, circuit.probe_failures) == ("open", 1, 0)
        assert "lists no models" in circuit.probe_outcome


def test_it_goes_on_when_one_cannot_be_asked(
    directory: Directory, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    odd = Provider.objects.create(name="odd", protocol="of-tomorrow", base_url="http://127.0.0.1:1/v1")
    other = Deployment.objects.create(model=deployment.model, provider=odd, upstream_model="x", probe_every_s=5)
    assert probe_due() == 2
    assert Circuit.objects.get(pk=other.pk).probe_outcome == "it could not be asked"
    assert Circuit.objects.get(pk=deployment.pk).probe_outcome == "it lists its models (1)"
    assert "could not be asked for its models" in caplog.text


def test_it_leaves_the_probe_of_a_request_alone(directory: Directory, deployment: Deployment) -> None:
    for answer in ((200, LIST), (500, "no")):
        Circuit.objects.all().delete()
        opened(deployment)
        be_due()
        assert circuits.claim(ELSEWHERE, deployment.pk)
        directory.answer = answer
        probe_due()
        circuit = Circuit.objects.get()
        assert (circuit.state, circuit.openings, circuit.probe_by) == ("open", 1, ELSEWHERE.token)


def test_it_changes_nothing_that_a_person_switched(directory: Directory, deployment: Deployment) -> None:
    directory.answer = (500, "no")
    Circuit.objects.create(deployment=deployment, forced="open", forced_by="alice")
    for _ in range(4):
        assert probe_due() == 1
        be_due()
    circuit = Circuit.objects.get()
    assert (circuit.state, circuit.forced, circuit.probe_failures) == ("closed", "open", 4)


# ---- what is deleted ----


def test_it_deletes_what_is_old_or_too_much(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    now = timezone.now()
    for days in (1, 89, 91, 200):
        HealthEvent.objects.create(
            deployment=deployment, at=now - timedelta(days=days), before="closed", after="open"
        )
    for minutes in (1, 90):
        at = now - timedelta(minutes=minutes)
        RecentResults.objects.create(deployment=deployment, process=uuid4(), good=1, bad=1, at=at)
    Circuit.objects.bulk_create([Circuit(deployment_id=deployment.pk), Circuit(deployment_id=deployment.pk + 1)])
    assert housekeeping.tidy() == 2 + 1 + 1
    assert HealthEvent.objects.count() == 2 and RecentResults.objects.count() == 1
    assert Circuit.objects.get().pk == deployment.pk


def test_it_keeps_the_newest_of_a_long_history(deployment: Deployment) -> None:
    HealthEvent.objects.bulk_create(
        HealthEvent(deployment=deployment, before="closed", after="open", reason=str(n)) for n in range(5_003)
    )
    assert housekeeping.tidy() == 3
    assert HealthEvent.objects.order_by("id")[0].reason == "3"
