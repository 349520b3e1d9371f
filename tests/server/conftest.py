from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.server.raw import ask
from tests.servers import RunningServer, running_server

STUB = {
    "DJANGO_SETTINGS_MODULE": "tests.server.stub_settings",
    "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none",  # nobody listens there
    "MAX_BODY_BYTES": "100000",
    "CORS_ORIGINS": "https://app.example",
    "DRAIN_SECONDS": "30",
}


@pytest.fixture(scope="session")
def stub() -> Iterator[RunningServer]:
    """One server for all tests that do not end it."""
    with running_server(STUB) as server:
        yield server


@pytest.fixture
def fresh_stub() -> Iterator[RunningServer]:
    """A server for a test that ends it."""
    with running_server(STUB) as server:
        yield server


def until(true: Callable[[], bool]) -> None:
    """Wait for what happens in another process; fails after a minute and a half: workers may have to start."""
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def count(server: RunningServer, name: str) -> int:
    """How often the stub's views did something."""
    return int(ask(server, "GET", "/v1/state").json().get(name, 0))
