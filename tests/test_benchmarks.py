"""`make bench` runs, and finds the books in order. What it measures is not judged here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path, module: str, *arguments: str) -> tuple[str, list[Any]]:
    """What it says, and its runs: [part, scenario, target, figures]. Nothing of its engines is left."""
    figures = folder / "figures.json"
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--json", figures],
        cwd=ROOT,
        env={**os.environ, "COUNTERFOIL_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not list((folder / "home").glob("bench/*")), "it leaves its engines' folder behind"
    return ended.stdout, json.loads(figures.read_text())


@pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="its load client is C, and there is no C compiler"
)
def test_it_measures_and_checks_the_books(tmp_path: Path) -> None:
    said, runs = run(tmp_path, "benchmarks", "--quick")
    assert said.count("drift: 0") == 2 and "Targets" in said
    measured = {(part, scenario, target) for part, scenario, target, _ in runs}
    for scenario in ("c1", "c16", "c64", "paced64"):
        assert {("main", scenario, "direct"), ("main", scenario, "counterfoil")} <= measured
    assert {("commit_delay", "c64", "counterfoil"), ("saturated", "c16", "same process")} <= measured
    for scenario in ("c1", "c16", "c64", "c256"):
        assert {("limits", scenario, target) for target in ("direct", "hot", "fifty", "none")} <= measured
        assert {("desk", scenario, "hot"), ("desk", scenario, "fifty")} <= measured
    assert {("slow desk", "c64", "hot"), ("slow desk", "c64", "fifty")} <= measured
    limited = [figures for part, _, target, figures in runs if part == "limits" and target != "direct"]
    assert all(0 < figures["admission50"] <= figures["admission99"] for figures in limited)


def test_the_desk_is_measured_alone(tmp_path: Path) -> None:
    arguments = ["--in-flight", "3", "--tenants", "hot", "none", "--seconds", "0.3", "--processes", "2"]
    said, runs = run(tmp_path, "benchmarks.desk", *arguments)
    assert "drift: 0" in said
    assert {(scenario, target) for _, scenario, target, _ in runs} == {("c3", "hot"), ("c3", "none")}
    for *_, figures in runs:
        assert figures["requests"] and figures["desk_us"] > figures["thread_us"] > 0
