"""The request that the lean handler gives to Django's views: everything that may not be needed is lazy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, QueryDict, parse_cookie
from django.utils.functional import cached_property
from django.utils.http import parse_header_parameters

from apiv1.requests import KeepAlive
from gateway.logs import RequestLog

LONGEST_ID = 512  # of a client's own request id (openai-wire.md 6)


class Headers(Mapping[str, str]):
    """ASGI's header pairs by name, whatever the case; a repeated header is joined by commas."""

    __slots__ = ("_values",)

    def __init__(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self._values = dict(pairs)
        if len(self._values) != len(pairs):
            for name in self._values:
                self._values[name] = b",".join(value for other, value in pairs if other == name)

    def raw(self, name: bytes) -> bytes | None:
        return self._values.get(name)

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower().encode("latin1")].decode("latin1")

    def get(self, name: str, default: Any = None) -> Any:
        """Mapping's own raises and catches an exception for each header that is not there."""
        value = self._values.get(name.lower().encode("latin1"))
        return default if value is None else value.decode("latin1")

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower().encode("latin1", "replace") in self._values

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin1") for name in self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def client_request_id(self) -> str:
        value = self._values.get(b"x-client-request-id", b"")
        return value.decode("ascii", "replace")[:LONGEST_ID]


class LeanRequest(HttpRequest):
    """Django's request over an ASGI scope and a body that is in memory."""

    keep_alive: KeepAlive  # by the lean handler

    def __init__(self, scope: dict[str, Any], headers: Headers, body: bytes, log: RequestLog) -> None:
        # Not super().__init__(): it makes three QueryDicts that no API call looks at.
        self.scope = scope
        self.method = scope["method"]
        self.path = self.path_info = scope["path"]
        self.headers = headers  # type: ignore[assignment]
        self.counterfoil = log
        self.resolver_match = None
        self._body = body
        self._read_started = False
        self._stream = BytesIO(body)

    # mypy: Django's are attributes, these are made on first use.
    @cached_property
    def META(self) -> dict[str, Any]:  # type: ignore[override]
        return ASGIRequest(self.scope, self._stream).META

    @cached_property
    def GET(self) -> QueryDict:  # type: ignore[override]
        return QueryDict(self.scope["query_string"])

    @cached_property
    def COOKIES(self) -> dict[str, str]:  # type: ignore[override]
        return parse_cookie(self.headers.get("cookie", ""))

    @cached_property
    def POST(self) -> QueryDict:  # type: ignore[override]
        return QueryDict()

    @cached_property
    def _content_type(self) -> tuple[str, dict[str, str]]:
        return parse_header_parameters(self.headers.get("content-type", ""))

    @property
    def content_type(self) -> str:  # type: ignore[override]
        return self._content_type[0]

    @property
    def content_params(self) -> dict[str, str]:  # type: ignore[override]
        return self._content_type[1]

    def _get_scheme(self) -> str:
        return str(self.scope.get("scheme", "http"))
