"""The adapter for everything that speaks OpenAI's chat API over HTTP: most providers, and the local model."""

from __future__ import annotations

from typing import Any

from gateway.upstreams.adapter import HTTPAdapter
from gateway.upstreams.base import Target
from gateway.upstreams.client import Headers
from gateway.upstreams.faults import error_of

# OpenAI's reasoning models refuse the old name of the cap, other servers do not know the new one.
OLD_CAP, NEW_CAP = "max_tokens", "max_completion_tokens"


class OpenAIAdapter(HTTPAdapter):
    def __init__(self) -> None:
        super().__init__()
        self._want_new_cap: set[tuple[int, str]] = set()  # deployments and their models

    def path(self, target: Target, *, stream: bool) -> str:
        return "/chat/completions"

    def headers(self, target: Target) -> Headers:
        return (("Authorization", f"Bearer {target.credential}"),) if target.credential else ()

    def body(self, target: Target, request: dict[str, Any], *, stream: bool) -> dict[str, Any]:
        """The request as it came, under the provider's name of the model. null means "absent" and is left out."""
        body = {name: value for name, value in request.items() if value is not None}
        body["model"] = target.upstream_model
        if OLD_CAP in body and (target.deployment_id, target.upstream_model) in self._want_new_cap:
            body.setdefault(NEW_CAP, body.pop(OLD_CAP))
        body.pop("stream", None)
        options = body.pop("stream_options", None)
        if stream:
            body["stream"] = True
            # Always asked for: the books need it. Clients who did not ask do not get to see it.
            body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        return body

    def learns(self, target: Target, asked: dict[str, Any], status: int, said: bytes) -> bool:
        """That a model wants the cap's new name. Often it is not the client who set a cap, but the catalogue.

        Only what no client can write into a refusal counts: who is believed here decides for everybody.
        """
        refusal = error_of(said) if status == 400 and OLD_CAP in asked else None
        if refusal is None or (refusal.get("code"), refusal.get("param")) != ("unsupported_parameter", OLD_CAP):
            return False
        self._want_new_cap.add((target.deployment_id, target.upstream_model))
        return True
