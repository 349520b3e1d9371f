"""Kinds of paths, for labels: a few names for whatever clients ask for."""

from __future__ import annotations

from gateway.telemetry.labels import OTHER

INFERENCE = {
    "chat/completions": "chat.completions",
    "completions": "completions",
    "embeddings": "embeddings",
    "responses": "responses",
}
KINDS = {
    "admin": "admin",
    "api": "finance",
    "health": "health",
    "livez": "health",
    "readyz": "health",
    "metrics": "metrics",
    "static": "static",
    "ws": "websocket",
}
API = {"models", "usage", "limits"}

_prefix = "/v1/"


def configure(prefix: str) -> None:
    """API_PREFIX."""
    global _prefix
    _prefix = prefix.rstrip("/") + "/"


def inference(path: str) -> str | None:
    """chat.completions and its like; None for any other path."""
    return INFERENCE.get(path[len(_prefix) :].rstrip("/")) if path.startswith(_prefix) else None


def kind(path: str) -> str:
    found = inference(path)
    if found is not None:
        return found
    if path.startswith(_prefix):
        first = path[len(_prefix) :].partition("/")[0]
        if first in API:
            return first
        if _prefix != "/":
            return "api"
    return KINDS.get(path[1:].partition("/")[0], "index" if path == "/" else OTHER)
