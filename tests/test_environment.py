"""Reading settings: from the environment, from a file, and what is remembered of bad values."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from django.conf import settings

from gateway import environment

ROOT: Path = settings.BASE_DIR


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    monkeypatch.setattr(environment, "problems", found)
    return found


def test_it_reads_a_file_as_compose_does_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problems: list[tuple[str, str]]
) -> None:
    monkeypatch.setattr(os, "environ", {"GIVEN": "outside"})
    path = tmp_path / ".env"
    path.write_text(
        '# a comment\n\nGIVEN=inside\nPLAIN=a b # why\nexport EXPORTED=1\nQUOTED="a # b"\nEMPTY= # nothing\nbroken\n'
    )
    environment.load_dotenv(path)
    assert environment.text("GIVEN") == "outside"
    assert environment.text("PLAIN") == "a b"
    assert environment.text("EXPORTED") == "1"
    assert environment.text("QUOTED") == "a # b"
    assert environment.text("EMPTY", "default") == "default"
    assert problems == [(".env:8", "expected NAME=value")]


@pytest.mark.parametrize(("raw", "value"), [("1", True), ("Yes", True), ("off", False), ("", True), (None, True)])
def test_a_flag_that_is_not_said_keeps_its_default(
    raw: str | None, value: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {} if raw is None else {"FLAG": raw})
    assert environment.flag("FLAG", True) is value


def test_bad_values_are_remembered_and_their_defaults_used(
    monkeypatch: pytest.MonkeyPatch, problems: list[tuple[str, str]]
) -> None:
    monkeypatch.setattr(os, "environ", {"FLAG": "perhaps", "NUMBER": "ten", "PORT": "70000"})
    assert environment.flag("FLAG", False) is False
    assert environment.integer("NUMBER", 7) == 7
    assert environment.integer("PORT", 8000, low=1, high=65535) == 8000
    assert environment.database("mysql://x/y", "DATABASE_URL")["NAME"] == "missing"
    assert [name for name, _ in problems] == ["FLAG", "NUMBER", "PORT", "DATABASE_URL"]


def test_a_database_url_with_a_socket_folder_and_options() -> None:
    found = environment.database("postgres://us%40er:p%2Fw@db.example:6432/name?sslmode=require", "DATABASE_URL")
    assert (found["USER"], found["PASSWORD"], found["HOST"]) == ("us@er", "p/w", "db.example")
    assert (found["PORT"], found["NAME"], found["OPTIONS"]) == (
        "6432",
        "name",
        environment.LINK_OPTIONS | {"sslmode": "require"},
    )
    assert environment.database("postgres://app@/dev?host=/run/pg", "DATABASE_URL")["HOST"] == "/run/pg"


def test_the_example_file_lists_every_setting() -> None:
    source = (ROOT / "platform" / "gateway" / "settings.py").read_text()
    read = set(re.findall(r'environment\.\w+\(\s*"([A-Z_]+)"', source))
    listed = set(re.findall(r"^#([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    only_compose = {"DATABASE_PASSWORD", "OWNER_PASSWORD"}
    assert listed == (read - {"COUNTERFOIL_ENV_FILE"}) | only_compose
