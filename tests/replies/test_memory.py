"""A request that has ended badly keeps no memory: it must not wait for Python to collect cycles, which is seldom."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from tests.replies.conftest import Shop
from tests.servers import RunningServer
from tests.upstream_scripts import Answer, error

MB = 1_000_000
TIMES = 8


def resident_mb(server: RunningServer) -> int:
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4 // 1024


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ending", ["refused", "left"])
def test_its_body_is_let_go(shop: Shop, ending: str, stream: bool) -> None:
    images = [{"role": "user", "content": "x" * 10 * MB}]
    with suppress(requests.Timeout):
        shop.ask(key="-", messages=images)  # what one takes, once
    before = resident_mb(shop.server)
    for _ in range(TIMES):
        shop.upstream.reset()
        shop.upstream.queue(error(400) if ending == "refused" else Answer(delay=5))
        with suppress(requests.Timeout):
            leaves = (60, 60 if ending == "refused" else 0.4)  # as soon as it has sent all
            shop.ask(key="-", messages=images, stream=stream, timeout=leaves)
    deadline = time.monotonic() + 60
    while resident_mb(shop.server) > before + 60:  # twice the body of each: 160
        assert time.monotonic() < deadline, f"{before} MB became {resident_mb(shop.server)}"
        time.sleep(0.1)
