"""A protocol's adapter in front of a fake of its provider, and what a request comes to on both sides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from gateway.upstreams.base import Face, Target, Usage
from gateway.upstreams.registry import ADAPTERS
from gateway.upstreams.relay import Relay
from tests.upstreams.fakes import anthropic, azure, gemini
from tests.upstreams.fakes.anthropic import AnthropicFake
from tests.upstreams.fakes.azure import AzureFake
from tests.upstreams.fakes.fake import Fake, Json
from tests.upstreams.fakes.gemini import GeminiFake

FAKES: dict[str, type[Fake]] = {"anthropic": AnthropicFake, "gemini": GeminiFake, "azure": AzureFake}
MODELS = {"anthropic": "claude-sonnet-4-5-20250929", "gemini": "gemini-2.5-flash", "azure": "chat-prod"}
FACE = Face("chatcmpl-ours", 1_800_000_000, "acme-chat", include_usage=True)
# A whole stream that says "Hello there.", event by event.
STREAMS: dict[str, list[bytes]] = {
    "azure": azure.stream({"content": "Hello there."}, "stop", usage=True),
    "anthropic": anthropic.stream([anthropic.HELLO]),
    "gemini": gemini.stream(gemini.HELLO),
}
GREETING: Json = {"role": "user", "content": "Say hello."}
WEATHER: Json = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather.",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string"}},
            "required": ["location"],
            "additionalProperties": False,
        },
    },
}
ASKED: Json = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"location": "Rome"}'}}
    ],
}
ANSWERED: Json = {"role": "tool", "tool_call_id": "call_1", "content": "18 degrees"}


@contextmanager
def running_fakes() -> Iterator[dict[str, Fake]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(kind()) for name, kind in FAKES.items()}


class Spoken:
    def __init__(self, protocol: str, fake: Fake) -> None:
        self.fake, self.adapter = fake, ADAPTERS[protocol]()
        self.target = Target(
            deployment_id=1,
            provider_id=1,
            protocol=protocol,
            base_url=fake.url,
            credential=fake.key,
            upstream_model=MODELS[protocol],
            connect_timeout_s=5,
            read_timeout_s=10,
        )

    def at(self, **changes: Any) -> Spoken:
        """The same with another target."""
        self.target = replace(self.target, **changes)
        return self

    async def complete(self, *messages: Json, **asked: Any) -> tuple[Json, Usage]:
        """(the client's JSON, what is booked)."""
        answer = await self.adapter.complete(self.target, request(*messages, **asked), FACE)
        return json.loads(answer.body), answer.usage

    async def open(self, *messages: Json, **asked: Any) -> Relay:
        stream = await self.adapter.open_stream(self.target, request(*messages, stream=True, **asked), FACE)
        assert isinstance(stream, Relay)
        return stream

    async def stream(self, *messages: Json, **asked: Any) -> tuple[list[Json], Usage]:
        """(the client's chunks, what is booked)."""
        stream = await self.open(*messages, **asked)
        sent = b"".join([piece async for piece in stream])
        return [json.loads(event[6:]) for event in sent.split(b"\n\n") if event], stream.usage

    async def sends(self, *messages: Json, **asked: Any) -> Json:
        """What reaches the provider for this request."""
        await self.complete(*messages, **asked)
        return self.fake.served[-1].body


def request(*messages: Json, **asked: Any) -> Json:
    return {"model": "acme-chat", "messages": list(messages) or [GREETING], **asked}
