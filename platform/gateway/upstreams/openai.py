"""The adapter for everything that speaks OpenAI's chat API over HTTP: most providers, and the local model."""

from __future__ import annotations

from typing import Any

from gateway.upstreams.adapter import HTTPAdapter
from gateway.upstreams.base import Target
from gateway.upstreams.client import Headers


class OpenAIAdapter(HTTPAdapter):
    def path(self, target: Target, *, stream: bool) -> str:
        return "/chat/completions"

    def headers(self, target: Target) -> Headers:
        return (("Authorization", f"Bearer {target.credential}"),) if target.credential else ()

    def body(self, target: Target, request: dict[str, Any], *, stream: bool) -> dict[str, Any]:
        """The request as it came, under the provider's name of the model. null means "absent" and is left out."""
        body = {name: value for name, value in request.items() if value is not None}
        body["model"] = target.upstream_model
        body.pop("stream", None)
        options = body.pop("stream_options", None)
        if stream:
            body["stream"] = True
            # Always asked for: the books need it. Clients who did not ask do not get to see it.
            body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        return body
