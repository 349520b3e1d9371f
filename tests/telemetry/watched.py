"""A real server and all that watches it: both pages of metrics, a collector of spans, its log (see conftest.py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import requests

from tests.house import House
from tests.servers import RunningServer
from tests.telemetry.collector import Collector
from tests.telemetry.samples import value
from tests.upstream import Upstream

TOKEN = "a-token-for-the-scraper"
SECRET_WORDS = "the-prompt-that-nobody-may-see"
PRICE = '[{effective_from: 2026-01-01, currency: USD, input: "1", output: "2"}]'


def _model(name: str, provider: str = "scripted") -> str:
    return (
        f"  - {{id: {name}, deployments: [{{provider: {provider}, upstream_model: {name}-v1}}], prices: {PRICE}}}\n"
    )


# A deployment for each kind of trouble: their breakers open.
TROUBLED = ("acme-failing", "acme-cut", "acme-silent", "acme-lost")
CATALOGUE = (
    """\
providers:
  - {name: scripted, protocol: openai, base_url: "URL", credential: $WATCHED_KEY}
  - {name: echo, protocol: echo}
tenants:
  - {slug: acme, name: Acme, currency: USD, models: ["acme*"]}
models:
"""
    + _model("acme-echo", "echo")
    + "".join(map(_model, ("acme-chat", *TROUBLED)))
)


@dataclass
class Watched:
    server: RunningServer
    secret: str
    upstream: Upstream
    collector: Collector
    house: House
    metrics_port: int

    def ask(self, model: str = "acme-chat", secret: str = "", headers: Any = None, **body: Any) -> requests.Response:
        return requests.post(
            f"{self.server}/v1/chat/completions",
            json={"model": model, "messages": [{"role": "user", "content": SECRET_WORDS}], **body},
            headers={"authorization": f"Bearer {secret or self.secret}", **(headers or {})},
            timeout=90,
        )

    def page(self) -> str:
        response = requests.get(f"{self.server}/metrics", headers={"authorization": f"Bearer {TOKEN}"})
        assert response.status_code == 200
        return response.text

    def sample(self, name: str, **labels: str) -> float:
        return value(self.page(), name, **labels) or 0.0

    def lines(self, request_id: str) -> list[dict[str, Any]]:
        return [line for line in self.server.lines() if line.get("request_id") == request_id]


def until(true: Callable[[], bool]) -> None:
    """Wait for what happens in another process; fails after two minutes: two workers may have to start."""
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
