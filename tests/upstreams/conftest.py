from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from gateway.upstreams import addresses
from gateway.upstreams.base import Face, Stream, Target
from gateway.upstreams.openai import OpenAIAdapter
from tests.upstream import Upstream
from tests.upstreams.fakes.fake import Fake
from tests.upstreams.fakes.spoken import Spoken, running_fakes

FACE = Face("chatcmpl-ours", 1_800_000_000, "acme-chat")
REQUEST: dict[str, Any] = {"model": "acme-chat", "messages": [{"role": "user", "content": "say hello to me"}]}


@pytest.fixture(scope="session")
def one_upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(one_upstream: Upstream) -> Upstream:
    one_upstream.reset()
    return one_upstream


@pytest.fixture(autouse=True)
def loopback() -> Iterator[None]:
    before = addresses.rules()
    addresses.configure(allow_private=False, allow_loopback=True)
    yield
    addresses.configure(allow_private=before.allow_private, allow_loopback=before.allow_loopback)


@pytest.fixture
async def adapter() -> AsyncIterator[OpenAIAdapter]:
    adapter = OpenAIAdapter()
    yield adapter
    await adapter.close()


@pytest.fixture
def target(upstream: Upstream) -> Callable[..., Target]:
    """target("upstream's model", …): a deployment at the scripted upstream."""

    def make(model: str = "any", **changes: Any) -> Target:
        facts: dict[str, Any] = {
            "base_url": upstream.url,
            "credential": "sk-provider-secret",
            "upstream_model": model,
        }
        facts |= {
            "connect_timeout_s": 5,
            "read_timeout_s": 10,
            "deployment_id": 1,
            "provider_id": 1,
            "protocol": "openai",
        }
        return Target(**facts | changes)

    return make


@pytest.fixture(scope="session")
def fakes() -> Iterator[dict[str, Fake]]:
    with running_fakes() as fakes:
        yield fakes


@pytest.fixture
async def speak(fakes: dict[str, Fake]) -> AsyncIterator[Callable[[str], Spoken]]:
    """speak("anthropic"): its adapter, in front of a fake of its provider."""
    spoken: dict[str, Spoken] = {}

    def begin(protocol: str) -> Spoken:
        fakes[protocol].reset()
        return spoken.setdefault(protocol, Spoken(protocol, fakes[protocol]))

    yield begin
    for one in spoken.values():
        await one.adapter.close()


async def collect(stream: Stream) -> list[dict[str, Any]]:
    """The chunks of a whole stream; each must be exactly one `data:` line and a blank one."""
    return parse(b"".join([piece async for piece in stream]))


def parse(sent: bytes) -> list[dict[str, Any]]:
    *events, rest = sent.split(b"\n\n")
    assert rest == b""
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
    return [json.loads(event[6:]) for event in events]


def text_in(chunks: list[dict[str, Any]], index: int = 0, field: str = "content") -> str:
    deltas = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get(field) or "" for choice in deltas)
