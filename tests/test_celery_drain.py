"""SIGTERM with a task under way: real processes of Celery, in a database of their own in the embedded Valkey."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import redis
from django.conf import settings

from gateway.celery import app
from gateway.embedded import engines
from tests.servers import ROOT, server_environment

DATABASE = 7
WAIT_SECONDS = 120
WORKER = ("worker", "-P", "threads", "-c", "1", "--include", "tests.slow_tasks", "--loglevel", "INFO")
BEAT = ("beat", "--pidfile", "", "--loglevel", "INFO")


@pytest.fixture
def valkey() -> Iterator[redis.Redis]:
    engines.ensure(settings.COUNTERFOIL_HOME)
    with redis.Redis.from_url(f"{settings.VALKEY_URL}?db={DATABASE}") as client:
        client.flushdb()
        yield client
        client.flushdb()


@contextmanager
def celery(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = server_environment({"VALKEY_URL": f"{settings.VALKEY_URL}?virtual_host={DATABASE}"})
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "gateway", *arguments],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def send(name: str, seconds: float) -> None:
    url = settings.VALKEY_URL.replace("unix://", "redis+socket://", 1) + f"?virtual_host={DATABASE}"
    theirs = f"{settings.VALKEY_URL}?db={DATABASE}"
    with app.connection_for_write(url) as connection:
        app.send_task("tests.slow", kwargs={"name": name, "seconds": seconds, "url": theirs}, connection=connection)


def said(valkey: redis.Redis) -> list[str]:
    return [line.decode() for line in valkey.lrange("tests.slow", 0, -1)]


def test_a_worker_ends_its_task_and_leaves_the_rest_to_another(valkey: redis.Redis) -> None:
    send("first", 5)  # so long that we are not kept from seeing it under way
    send("second", 0)
    with celery(*WORKER) as worker:
        until(lambda: said(valkey) == ["first began"])
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(WAIT_SECONDS) == 0
    assert said(valkey) == ["first began", "first ended"]
    with celery(*WORKER) as worker:
        until(lambda: said(valkey)[2:] == ["second began", "second ended"])
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(WAIT_SECONDS) == 0
    assert not valkey.hlen("unacked")


def test_what_a_killed_worker_had_begun_is_not_lost(valkey: redis.Redis) -> None:
    send("cut", 3600)
    with celery(*WORKER) as worker:
        until(lambda: said(valkey) == ["cut began"])
        worker.kill()
        worker.wait()
    assert valkey.hlen("unacked") == 1  # it is given to another when the time of celery.py is up


def test_beat_ends_at_once(valkey: redis.Redis) -> None:
    with celery(*BEAT) as beat:
        until(lambda: int(valkey.llen("celery")) > 0)
        beat.send_signal(signal.SIGTERM)
        assert beat.wait(WAIT_SECONDS) == 0
