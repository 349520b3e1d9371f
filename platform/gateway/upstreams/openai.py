"""The adapter for everything that speaks OpenAI's chat API over HTTP: most providers, and the local model."""

from __future__ import annotations

from functools import partial
from typing import Any

from gateway.errors import UpstreamError
from gateway.upstreams.answers import FAILED, answer_of
from gateway.upstreams.base import Answer, Face, Target
from gateway.upstreams.client import Client
from gateway.upstreams.faults import from_response, note
from gateway.upstreams.jsontext import dumps, loads
from gateway.upstreams.relay import Relay
from gateway.upstreams.response import Response
from gateway.upstreams.tokens import estimate_request

CHAT = "/chat/completions"


class OpenAIAdapter:
    def __init__(self) -> None:
        self._client = Client()

    async def complete(self, target: Target, request: dict[str, Any], face: Face) -> Answer:
        response = await self._post(target, request, face, stream=False)
        said = _json(await response.read_all(), target)
        try:
            return answer_of(said, request, face)
        except UpstreamError as exc:
            note(target, exc.message)
            raise

    async def open_stream(self, target: Target, request: dict[str, Any], face: Face) -> Relay:
        response = await self._post(target, request, face, stream=True)
        estimate = partial(estimate_request, request)
        if response.content_type == "application/json":
            # A provider that cannot stream: its whole answer becomes a stream of one event.
            relay = Relay(_Whole(_json(await response.read_all(), target)), face, estimate)
        elif response.content_type == "text/html":
            response.abort("a stream was asked for, and a web page came")
            raise UpstreamError(FAILED)
        else:
            relay = Relay(response, face, estimate)
        await relay.prime()
        return relay

    async def close(self) -> None:
        await self._client.close()

    async def _post(self, target: Target, request: dict[str, Any], face: Face, *, stream: bool) -> Response:
        response = await self._client.post(target, CHAT, _body(target, request, stream=stream), stream=stream)
        if response.status == 200:
            return response
        said = await response.read_error()
        raise from_response(response.status, response.headers, said, target, face.model)


def _json(body: bytes, target: Target) -> object:
    try:
        return loads(body)
    except ValueError:
        note(target, "the body is not JSON")
        raise UpstreamError(FAILED) from None


class _Whole:
    """relay.Source: one event that holds a whole answer, with messages for deltas."""

    def __init__(self, said: object) -> None:
        if not isinstance(said, dict) or not isinstance(said.get("choices"), list):
            raise UpstreamError(FAILED)
        choices = [
            {**choice, "delta": choice.get("message")} for choice in said["choices"] if isinstance(choice, dict)
        ]
        self._pieces = [b"data: " + dumps({**said, "choices": choices}) + b"\n\n", b"data: [DONE]\n\n"]

    async def read(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    def finish(self) -> None:
        """There is no connection any more."""

    def abort(self, cause: str = "") -> None:
        """There is no connection any more."""


def _body(target: Target, request: dict[str, Any], *, stream: bool) -> bytes:
    """The request as it came, under the provider's name of the model. null means "absent" and is left out."""
    body = {name: value for name, value in request.items() if value is not None}
    body["model"] = target.upstream_model
    body.pop("stream", None)
    options = body.pop("stream_options", None)
    if stream:
        body["stream"] = True
        # Always asked for: the books need it. Clients who did not ask do not get to see it.
        body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    return dumps(body)
