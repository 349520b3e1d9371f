"""One real server for all client tests, in front of a scripted provider and an echo, on a database of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai
import pytest
from django.conf import settings

from gateway.embedded import engines, layout
from tests.house import House, Row
from tests.servers import RunningServer, running_server
from tests.upstream import Served, Upstream
from tests.upstream_scripts import Script

HERE = Path(__file__).parent
PROVIDER_KEY = "sk-of-the-provider"
UNIT_PRICE = '[{effective_from: 2026-01-01, currency: USD, input: "1", cached_input: "0.5", output: "2"}]'
CATALOGUE = """\
providers:
  - {name: scripted, protocol: openai, base_url: "URL", credential: $CLIENTS_PROVIDER_KEY}
  - {name: echo, protocol: echo}
models:
  - {id: acme-chat, deployments: [{provider: scripted, upstream_model: chat-v1}], prices: PRICE}
  - {id: "acme/chat:7b", deployments: [{provider: scripted, upstream_model: words-7}], prices: PRICE}
  - {id: acme-echo, deployments: [{provider: echo, upstream_model: echo}], prices: PRICE}
  - {id: globex-secret, deployments: [{provider: echo, upstream_model: echo}], prices: PRICE}
tenants:
  - {slug: acme, name: Acme, timezone: Europe/Berlin, currency: USD, models: ["acme*", "local-*"]}
"""

IMPATIENT = """\
providers:
  - {name: impatient, protocol: openai, base_url: "URL", credential: "", first_byte_timeout_s: 1, read_timeout_s: 9}
models:
  - {id: acme-first, deployments: [{provider: impatient, upstream_model: a}], prices: PRICE}
  - {id: acme-between, deployments: [{provider: impatient, upstream_model: b}], prices: PRICE,
      first_byte_timeout_s: 9, read_timeout_s: 1}
  - {id: acme-total, deployments: [{provider: impatient, upstream_model: c}], prices: PRICE,
      first_byte_timeout_s: 9, total_timeout_s: 3}
"""


@dataclass
class Shop:
    """What a client needs, and what its tests look at behind its back."""

    house: House
    server: RunningServer
    secret: str
    upstream: Upstream

    @property
    def base_url(self) -> str:
        return f"{self.server}/v1"

    def record(self, request_id: str | None) -> Row:
        """The ledger's record of an x-request-id. After a client has left it may still be on its way."""
        assert request_id is not None
        return self._record("request_id", request_id.removeprefix("req_"))

    def record_of(self, user: str) -> Row:
        """Of a request that never got as far as an x-request-id."""
        return self._record("end_user", user)

    def _record(self, column: str, value: str) -> Row:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            rows = self.house.query(f"SELECT * FROM ledger_usagerecord WHERE {column} = %s", [value])
            if rows:
                return rows[0]
            time.sleep(0.02)
        raise AssertionError(f"no record with {column} {value}")

    def serve(self, *scripts: Script) -> Callable[[], list[Served]]:
        """The provider will answer the next requests so; call what it returns for those that came since."""
        before = len(self.upstream.served)
        self.upstream.queue(*scripts)
        return lambda: self.upstream.served[before:]


@pytest.fixture(scope="session")
def open_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    engines.ensure(settings.COUNTERFOIL_HOME)
    house = House(
        tmp_path_factory.mktemp("house"),
        layout.sockets(settings.COUNTERFOIL_HOME),
        f"clients_{os.getpid()}",
        {"CLIENTS_PROVIDER_KEY": PROVIDER_KEY, "CORS_ORIGINS": "*"},
    )
    house.create()
    try:
        with Upstream() as upstream:
            house.apply(CATALOGUE.replace("URL", upstream.url).replace("PRICE", UNIT_PRICE))
            secret = house.manage("issue_key", "--tenant", "acme", "--name", "laptop").strip()
            with running_server(house.environment) as server:
                yield Shop(house, server, secret, upstream)
    finally:
        house.drop()


@pytest.fixture
def shop(open_shop: Shop) -> Shop:
    open_shop.upstream.reset()
    return open_shop


@pytest.fixture(scope="session")
def quick_shop(open_shop: Shop) -> Iterator[Shop]:
    """The shop behind a server whose patience is short."""
    open_shop.house.apply(IMPATIENT.replace("URL", open_shop.upstream.url).replace("PRICE", UNIT_PRICE))
    module = {"DJANGO_SETTINGS_MODULE": "tests.clients.silence_settings"}
    with running_server({**open_shop.house.environment, **module}) as server:
        yield replace(open_shop, server=server)


@pytest.fixture
def quiet(shop: Shop, quick_shop: Shop) -> Shop:
    return quick_shop


@pytest.fixture
def client(shop: Shop) -> Iterator[openai.OpenAI]:
    """OpenAI's own, without its retries."""
    with openai.OpenAI(base_url=shop.base_url, api_key=shop.secret, max_retries=0, timeout=90) as client:
        yield client


@pytest.fixture
def node(shop: Shop) -> Callable[..., Any]:
    """node("chat.mjs", …): a script of node/, with URL and key in its environment; the JSON that it prints."""
    program = shutil.which("node")
    missing = ""
    if program is None:
        missing = "Node is not installed"
    elif not (HERE / "node_modules" / "openai").is_dir():
        missing = "OpenAI's Node package is not installed: npm ci --prefix tests/clients"
    if missing and os.environ.get("CI"):
        pytest.fail(missing)
    elif missing:
        pytest.skip(missing)

    def run(script: str, **extra: str) -> Any:
        environment = {**os.environ, "BASE_URL": shop.base_url, "API_KEY": shop.secret, **extra}
        done = subprocess.run(
            [str(program), str(HERE / "node" / script)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
