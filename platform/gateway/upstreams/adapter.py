"""What the adapters of all protocols over HTTP have in common: post, read, translate, map what goes wrong.

A protocol says where its doors are and how it writes requests; one that is not OpenAI's also turns answers
(`answer`) and the events of a stream (`source`) into OpenAI's form. From there on all go the same way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from gateway.errors import GatewayError, UpstreamError
from gateway.upstreams.answers import FAILED, answer_of
from gateway.upstreams.base import Answer, Face, Target
from gateway.upstreams.client import Client, Headers
from gateway.upstreams.faults import from_response, note
from gateway.upstreams.jsontext import dumps, loads
from gateway.upstreams.relay import Relay, Source, empty
from gateway.upstreams.response import Response
from gateway.upstreams.tokens import estimate_request


class HTTPAdapter(ABC):
    """base.Adapter. A refusal of what the protocol cannot say is raised before anything is sent."""

    def __init__(self) -> None:
        self._client = Client()

    async def complete(self, target: Target, request: dict[str, Any], face: Face) -> Answer:
        response = await self._post(target, request, face, stream=False)
        said = _json(await response.read_all(), target)
        try:
            return answer_of(self.answer(said), request, face)
        except UpstreamError as exc:
            note(target, exc.message)
            raise

    async def open_stream(self, target: Target, request: dict[str, Any], face: Face) -> Relay:
        response = await self._post(target, request, face, stream=True)
        if response.content_type == "application/json":
            # A provider that cannot stream: its whole answer becomes a stream of one event.
            source: Source = _Whole(self.answer(_json(await response.read_all(), target)))
        elif response.content_type == "text/html":
            response.abort("a stream was asked for, and a web page came")
            raise UpstreamError(FAILED)
        else:
            source = self.source(response, target, face)
        relay = Relay(source, face, partial(estimate_request, request))
        await relay.prime()
        return relay

    async def get_models(self, target: Target) -> Response:
        """The provider's list of what it serves. Raises UpstreamError or UpstreamTimeout if no answer came."""
        return await self._client.get(target, self.models_path(target), headers=self.headers(target))

    async def close(self) -> None:
        await self._client.close()

    async def _post(self, target: Target, request: dict[str, Any], face: Face, *, stream: bool) -> Response:
        path, headers = self.path(target, stream=stream), self.headers(target)
        while True:
            body = dumps(asked := self.body(target, request, stream=stream))
            response = await self._client.post(target, path, body, headers=headers, stream=stream)
            if response.status == 200:
                return response
            said = await response.read_error()
            if not self.learns(target, asked, response.status, said):
                raise self.fault(response.status, response.headers, said, target, face.model)

    # ---- what a protocol says of itself ------------------------------------------------------------------------

    @abstractmethod
    def path(self, target: Target, *, stream: bool) -> str:
        """Of the chat's door, from where the base URL ends."""

    @abstractmethod
    def headers(self, target: Target) -> Headers:
        """With the credential, if there is one."""

    @abstractmethod
    def body(self, target: Target, request: dict[str, Any], *, stream: bool) -> dict[str, Any]:
        """A request of OpenAI's as the provider wants it. Raises InvalidRequest for what it has no words for."""

    def learns(self, target: Target, asked: dict[str, Any], status: int, said: bytes) -> bool:
        """Whether a refusal says how this deployment wants to be asked, and `body` will ask so from now on."""
        return False

    def models_path(self, target: Target) -> str:
        return "/models"

    def model_names(self, said: object) -> list[str]:
        """Of an answer to `get_models`; [] if it is no list."""
        found = said.get("data") if isinstance(said, dict) else None
        names = [item.get("id") for item in found if isinstance(item, dict)] if isinstance(found, list) else []
        return [name for name in names if isinstance(name, str)]

    def answer(self, said: object) -> object:
        """A whole answer as OpenAI writes it; what is none may be given back as it is."""
        return said

    def source(self, response: Response, target: Target, face: Face) -> Source:
        """The bytes of a stream as OpenAI writes it."""
        return response

    def fault(
        self, status: int, headers: Mapping[str, str], body: bytes, target: Target, public_model: str
    ) -> GatewayError:
        """For an answer that is not 200."""
        return from_response(self.status_of(status, body), headers, body, target, public_model)

    def status_of(self, status: int, body: bytes) -> int:
        """What a status means, where the provider's is not the usual one."""
        return status


def missing_version(target: Target, version: str) -> str:
    """`version` if the base URL is a host alone, as the provider's own clients take it; else ""."""
    return "" if urlsplit(target.base_url).path.strip("/") else version


def _json(body: bytes, target: Target) -> object:
    try:
        return loads(body)
    except ValueError:
        note(target, "the body is not JSON" if body else "the body is empty")
        raise (UpstreamError(FAILED) if body else empty()) from None


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
