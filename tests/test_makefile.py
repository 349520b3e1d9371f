"""The commands that a person types first."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from django.conf import settings

ROOT: Path = settings.BASE_DIR
TARGETS = {"help", "run", "test", "check", "test-faults", "bench", "install", "lock", "clean"}


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=cwd, capture_output=True, text=True)


def test_help_lists_every_target_with_a_line() -> None:
    lines = dict(re.findall(r"^make (\S+) +(\S.*)$", make("help").stdout, re.MULTILINE))
    assert set(lines) == TARGETS
    assert (
        set(re.findall(r"\S+", re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[0])) == TARGETS
    )


def test_without_a_python_that_will_do_it_says_what_to_do(tmp_path: Path) -> None:
    for name in ["Makefile", "pyproject.toml", *(path.name for path in ROOT.glob("requirements*.lock"))]:
        shutil.copy(ROOT / name, tmp_path)
    done = make("run", "PYTHON=", cwd=tmp_path)
    assert done.returncode != 0
    assert "Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()
