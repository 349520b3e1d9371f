"""Guards of the house's one odd rule: `platform/` is a source root, and never a package."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

ROOT: Path = settings.BASE_DIR


def test_platform_is_the_standard_library_s() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert Path(platform.__file__).parent == Path(subprocess.__file__).parent


@pytest.mark.parametrize(
    "command",
    [
        ["-c", "import uuid, platform; platform.system(); import gateway, tenants, apiv1"],
        ["manage.py", "help"],
        ["-m", "celery", "-A", "gateway", "--help"],
    ],
)
def test_everything_starts_from_the_root(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_in_the_packages_is_named_for_nothing() -> None:
    vague = {"utils.py", "helpers.py", "common.py", "core.py"}
    packages = [ROOT / "platform", ROOT / "tenants", ROOT / "apiv1"]
    assert not [path for package in packages for path in package.rglob("*.py") if path.name in vague]


def test_files_stay_short() -> None:
    packages = [ROOT / "platform", ROOT / "tenants", ROOT / "apiv1"]
    long = {
        str(path.relative_to(ROOT)): lines
        for package in packages
        for path in package.rglob("*.py")
        if "migrations" not in path.parts and (lines := len(path.read_text().splitlines())) >= 300
    }
    assert long == {}
