"""A provider that speaks a protocol of its own on loopback, and refuses what the real one would refuse.

    with AnthropicFake() as fake:
        ... call fake.url with fake.key ...
        fake.served[-1].body, .headers, .target

It answers with what such a provider was seen to answer: with a call if tools are offered, else with a text.
`queue` and `script` of tests/upstream.py work too, and come after the checks.
"""

from __future__ import annotations

import asyncio
from typing import Any

from tests.upstream import ClientGoneError, Served, Upstream
from tests.upstream_scripts import Raw, Script, body

Json = dict[str, Any]


class Refused(Exception):
    """What the provider answers: a status, and the body that its own error has."""

    def __init__(self, status: int, said: Json, headers: Json | None = None) -> None:
        super().__init__(status)
        self.script = body(said, status, headers)


class Fake(Upstream):
    base = "/v1"
    key = "key-of-the-provider"

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}{self.base}"

    def check(self, request: Served) -> None:
        """Raises Refused."""
        raise NotImplementedError

    def answer(self, request: Served) -> Script:
        raise NotImplementedError

    def models(self) -> Json:
        """The list at `GET {url}/models`."""
        raise NotImplementedError

    async def _serve(self, request: Served, writer: asyncio.StreamWriter, closed: asyncio.Task[bytes]) -> bool:
        request.connect(writer, closed)
        self.served.append(request)
        try:
            await self._script(request)(request)
        except ClientGoneError:
            pass
        finally:
            request.finish("gone")
        return request.outcome == "whole"

    def _script(self, request: Served) -> Script:
        try:
            self.check(request)
        except Refused as refused:
            return refused.script
        if request.target.startswith("GET "):
            return body(self.models())
        return self._queue.popleft() if self._queue else self.answer(request)


def events(*parts: bytes | float, **ending: Any) -> Raw:
    """A stream of these bytes; floats are pauses. `cut` and `hang` say how it ends."""
    return Raw(parts, headers={"content-type": "text/event-stream; charset=utf-8"}, **ending)
