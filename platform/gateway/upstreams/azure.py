"""The adapter for Azure OpenAI: OpenAI's chat API behind other paths, an api-version and an api-key header.

The base URL is the resource's (`https://NAME.openai.azure.com`), and deployments are called by name; or the
newer `…/openai/v1`, where paths are OpenAI's and no version is needed. Azure's content filter annotates chunks,
some of which have no choice; Relay leaves them out.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from gateway.upstreams.base import Target
from gateway.upstreams.client import Headers
from gateway.upstreams.faults import error_of
from gateway.upstreams.openai import OpenAIAdapter

API_VERSION = "2024-10-21"  # the latest general availability before the v1 API
# A model that is newer than the api-version of the catalogue. Only how the message begins: the rest of such texts may
# repeat what the client wrote.
TOO_NEW = re.compile(r"Model \S+ is enabled only for api versions")


class AzureAdapter(OpenAIAdapter):
    def path(self, target: Target, *, stream: bool) -> str:
        if _is_v1(target):
            return _versioned("/chat/completions", target.api_version)
        deployment = quote(target.upstream_model, safe="")
        return _of_resource(target, f"/deployments/{deployment}/chat/completions")

    def headers(self, target: Target) -> Headers:
        return (("api-key", target.credential),) if target.credential else ()

    def status_of(self, status: int, body: bytes) -> int:
        """Faults of our catalogue come as 400, which would be the client's."""
        said = (error_of(body) if status == 400 else None) or {}
        ours = said.get("code") == "OperationNotSupported" or TOO_NEW.match(str(said.get("message")))
        return 404 if ours else status

    def models_path(self, target: Target) -> str:
        return _versioned("/models", target.api_version) if _is_v1(target) else _of_resource(target, "/models")


def _is_v1(target: Target) -> bool:
    return target.base_url.rstrip("/").endswith("/openai/v1")


def _of_resource(target: Target, path: str) -> str:
    prefix = "" if target.base_url.rstrip("/").endswith("/openai") else "/openai"
    return _versioned(prefix + path, target.api_version or API_VERSION)


def _versioned(path: str, version: str) -> str:
    return f"{path}?api-version={quote(version, safe='')}" if version else path
