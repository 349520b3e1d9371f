"""`make bench` runs, and finds the books in order. What it measures is not judged here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="its load client is C, and there is no C compiler"
)
def test_it_measures_and_checks_the_books(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--json", figures],
        cwd=ROOT,
        env={**os.environ, "COUNTERFOIL_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "drift: 0" in run.stdout and "Targets" in run.stdout
    measured = {(part, scenario, target) for part, scenario, target, _ in json.loads(figures.read_text())}
    for scenario in ("c1", "c16", "c64", "paced64"):
        assert {("main", scenario, "direct"), ("main", scenario, "counterfoil")} <= measured
    assert {("commit_delay", "c64", "counterfoil"), ("saturated", "c16", "same process")} <= measured
    assert not list((tmp_path / "home").glob("bench/*")), "it leaves its engines' folder behind"
