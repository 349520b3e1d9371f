"""Two server processes before a scripted provider, on a database of their own; acme pays, globex is next door."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
from django.conf import settings

from gateway.embedded import engines, layout
from tests.house import House, Row
from tests.servers import RunningServer, running_server
from tests.upstream import Served, Upstream
from tests.upstream_scripts import Script

PATIENCE_SECONDS = 60
MAX_BYTES = 64 * 1024
PROVIDER_KEY = "sk-of-the-provider"
PRICE = '[{effective_from: 2026-01-01, currency: USD, input: "1", output: "2"}]'
CATALOGUE = f"""\
providers:
  - {{name: scripted, protocol: openai, base_url: "URL", credential: $REPLIES_PROVIDER_KEY}}
models:
  - {{id: acme-chat, deployments: [{{provider: scripted, upstream_model: chat-v1}}], prices: {PRICE}}}
  - {{id: acme-other, deployments: [{{provider: scripted, upstream_model: chat-v2}}], prices: {PRICE}}}
tenants:
  - {{slug: acme, name: Acme, currency: USD, models: ["acme*"]}}
  - {{slug: globex, name: Globex, currency: USD, models: ["acme*"]}}
"""


@dataclass
class Shop:
    house: House
    server: RunningServer
    second: RunningServer
    upstream: Upstream
    secret: str
    neighbour: str  # globex's secret
    user: str = field(default_factory=lambda: uuid.uuid4().hex)  # of one test, for its records
    key: str = field(default_factory=lambda: str(uuid.uuid4()))  # its Idempotency-Key

    def ask(
        self,
        *,
        key: str | None = None,
        server: str = "",
        secret: str = "",
        timeout: float | tuple[float, float] = 60,
        headers: dict[str, str] | None = None,
        raw: bytes = b"",
        **body: Any,
    ) -> requests.Response:
        """One POST with this test's Idempotency-Key (or `key`; "-": none)."""
        sent = self.key if key is None else key
        return requests.post(
            f"{server or self.server}/v1/chat/completions",
            headers={
                "Authorization": f"Bearer {secret or self.secret}",
                "Content-Type": "application/json",
                **({} if sent == "-" else {"Idempotency-Key": sent}),
                **(headers or {}),
            },
            data=raw or json.dumps(self.body(**body)),
            stream=bool(body.get("stream")),
            timeout=timeout,
        )

    def ask_until_answered(self, **asked: Any) -> requests.Response:
        """As official clients do: who is told that the first is still being answered comes again."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (answer := self.ask(**asked)).status_code == 409:
            if answer.json()["error"]["code"] != "idempotency_key_in_use":
                break
            assert time.monotonic() < deadline, "the first request is still being answered"
        return answer

    def body(self, **more: Any) -> dict[str, Any]:
        hello = [{"role": "user", "content": "What is in the parcel?"}]
        return {"model": "acme-chat", "messages": hello, "user": self.user, **more}

    def at_once(self, count: int, ask: Callable[[int], requests.Response]) -> list[requests.Response]:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(ask, range(count)))

    def ask_and_leave(
        self, served: Callable[[], list[Served]], server: RunningServer | None = None, *, key: str = "", **body: Any
    ) -> None:
        """A client that hangs up while the provider is thinking; returns when the server has noticed."""
        server, data = server or self.server, json.dumps(self.body(**body)).encode()
        before = self._left(server)
        with server.connect() as connection:
            lines = [
                "POST /v1/chat/completions HTTP/1.1",
                "Host: localhost",
                f"Authorization: Bearer {self.secret}",
                "Content-Type: application/json",
                f"Content-Length: {len(data)}",
                *([] if key == "-" else [f"Idempotency-Key: {key or self.key}"]),
            ]
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + data)
            self._until(lambda: bool(served()), "the provider was not asked")
        self._until(lambda: self._left(server) > before, "nobody noticed that the client left")

    @staticmethod
    def _left(server: RunningServer) -> int:
        return sum(line["status"] == 499 for line in server.request_lines())

    @staticmethod
    def _until(true: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not true():
            assert time.monotonic() < deadline, otherwise
            time.sleep(0.02)

    def serve(self, *scripts: Script) -> Callable[[], list[Served]]:
        """The provider will answer the next requests so; call what it returns for those that came since."""
        before = len(self.upstream.served)
        self.upstream.queue(*scripts)
        return lambda: self.upstream.served[before:]

    def records(self, count: int = 1) -> list[Row]:
        """This test's, oldest first, once there are so many. A client that left is booked a moment later."""
        self._until(lambda: len(self.records_so_far()) >= count, f"fewer than {count} records")
        rows = self.records_so_far()
        assert len(rows) == count
        return rows

    def records_so_far(self) -> list[Row]:
        statement = "SELECT * FROM ledger_usagerecord WHERE end_user = %s ORDER BY request_id"
        return self.house.query(statement, [self.user])

    def kept(self, state: str = "kept") -> Row:
        """The row of this test's newest request, once it is in this state."""
        statement = "SELECT k.* FROM replies_keptreply k ORDER BY id DESC LIMIT 1"
        found: list[Row] = []

        def is_there() -> bool:
            found[:] = self.house.query(statement)
            return bool(found) and found[0]["state"] == state

        self._until(is_there, f"not {state}")
        return found[0]

    def under_way(self, served: Callable[[], list[Served]]) -> Row:
        """The row of the request that the provider is answering now."""
        self._until(lambda: bool(served()), "the provider was not asked")
        return self.kept("running")

    def until_gone(self) -> None:
        """The newest row is not of a request that runs."""
        newest = "SELECT state FROM replies_keptreply ORDER BY id DESC LIMIT 1"
        self._until(lambda: [row["state"] for row in self.house.query(newest)] != ["running"], "a request still runs")


@pytest.fixture(scope="session")
def open_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    engines.ensure(settings.COUNTERFOIL_HOME)
    house = House(
        tmp_path_factory.mktemp("house"),
        layout.sockets(settings.COUNTERFOIL_HOME),
        f"replies_{os.getpid()}",
        {
            "REPLIES_PROVIDER_KEY": PROVIDER_KEY,
            "CORS_ORIGINS": "https://app.example.com",
            "IDEMPOTENCY_MAX_BYTES": str(MAX_BYTES),
        },
    )
    house.create()
    try:
        with Upstream() as upstream:
            house.apply(CATALOGUE.replace("URL", upstream.url))
            secrets = [
                house.manage("issue_key", "--tenant", tenant, "--name", "laptop").strip()
                for tenant in ("acme", "globex")
            ]
            with running_server(house.environment) as first, running_server(house.environment) as second:
                yield Shop(house, first, second, upstream, *secrets)
    finally:
        house.drop()


@pytest.fixture
def shop(open_shop: Shop) -> Shop:
    open_shop.upstream.reset()
    return Shop(
        open_shop.house,
        open_shop.server,
        open_shop.second,
        open_shop.upstream,
        open_shop.secret,
        open_shop.neighbour,
    )
