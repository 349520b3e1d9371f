"""The system checks of metrics and traces, and what the documentation says of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings as project
from pytest_django.fixtures import Settings

from gateway.failover.retries import CLIENTS
from gateway.telemetry import traces
from gateway.telemetry.families import FAMILIES
from tests.test_checks import found


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("METRICS_PORT", 8000, "counterfoil.E030"),
        ("METRICS_TOKEN", "with a blank in it", "counterfoil.E031"),
        ("METRICS_TOKEN", "caf\u00e9-caf\u00e9-caf\u00e9-caf\u00e9", "counterfoil.E031"),
        ("METRICS_TOKEN", "short", "counterfoil.W031"),
        ("METRICS_DIR", "/dev/null/nowhere", "counterfoil.E032"),
    ],
)
def test_a_bad_setting_is_named_with_a_hint(name: str, value: Any, problem: str, settings: Settings) -> None:
    settings.PORT = 8000
    setattr(settings, name, value)
    messages = found()
    assert set(messages) == {problem}
    assert name in messages[problem].msg
    assert messages[problem].hint
    if name == "METRICS_TOKEN":
        assert value not in str(messages[problem])


def test_good_settings_are_in_order(settings: Settings, tmp_path: Path) -> None:
    settings.METRICS_PORT, settings.METRICS_TOKEN = 9464, "long-enough-to-be-one"
    settings.METRICS_DIR = str(tmp_path / "made" / "later")
    assert found() == {}


def test_traces_that_cannot_be_sent_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert found() == {}
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert "grpc" in found()["counterfoil.W032"].msg
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL")
    monkeypatch.setattr(traces, "MODULES", ("nobody.has.this",))
    assert "counterfoil[otel]" in (found()["counterfoil.W032"].hint or "")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert found() == {}


def test_the_documentation_lists_every_metric() -> None:
    text = (project.BASE_DIR / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| `((?:counterfoil|process)_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    said = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)), meaning + ".") for name, kind, labels, meaning in rows
    }
    assert said == {
        family.name + ("_total" if family.kind == "counter" else ""): (family.kind, family.labels, family.help)
        for family in FAMILIES.values()
    }


def test_what_is_a_clients_own_fault_wakes_nobody() -> None:
    """A tenant that sends nonsense gets the provider's 400, which is no failure of the service."""
    rules = yaml.safe_load((project.BASE_DIR / "docs" / "alerts.yml").read_text())["groups"][0]["rules"]
    asked = {rule["alert"]: rule["expr"] for rule in rules}
    (codes,) = re.findall('code=~"(.*?)"', asked["CounterfoilRequestsFail"])
    (outcomes,) = re.findall('outcome!~"(.*?)"', asked["CounterfoilUpstreamErrors"])
    for status in CLIENTS:
        assert not re.fullmatch(codes, str(status))
        assert re.fullmatch(outcomes, f"status_{status}")
    assert all(re.fullmatch(codes, status) for status in ("429", "502", "503", "504"))
    assert all(re.fullmatch(outcomes, end) for end in ("ok", "client_left", "server_stopped", "unsupported"))
    assert not any(re.fullmatch(outcomes, end) for end in ("status_503", "status_429", "connect", "timeout", "cut"))


def test_alerts_and_dashboard_ask_for_metrics_that_exist() -> None:
    known = {
        family.name + end
        for family in FAMILIES.values()
        for end in {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}[family.kind]
    }
    docs = project.BASE_DIR / "docs"
    rules = yaml.safe_load((docs / "alerts.yml").read_text())["groups"][0]["rules"]
    panels = json.loads((docs / "dashboard.json").read_text())["panels"]
    asked = [rule["expr"] for rule in rules] + [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(asked) > 20
    assert {name for query in asked for name in re.findall(r"(?:counterfoil|process)_\w+", query)} <= known
