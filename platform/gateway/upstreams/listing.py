"""What a provider says it serves: the cheapest request that shows whether address and credential are right."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.upstreams.adapter import HTTPAdapter
from gateway.upstreams.base import Target
from gateway.upstreams.jsontext import loads
from gateway.upstreams.registry import ADAPTERS

LARGEST_LIST = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Listing:
    status: int  # HTTP
    models: tuple[str, ...]  # empty too if the answer is no list
    body: str  # how it begins, for an administrator; the credential masked


async def list_models(target: Target) -> Listing:
    """GET the list where the protocol has it. Raises UpstreamError or UpstreamTimeout if no answer came, and
    KeyError or TypeError for a protocol that is not called over HTTP."""
    adapter = ADAPTERS[target.protocol]()
    if not isinstance(adapter, HTTPAdapter):
        raise TypeError(f"{target.protocol} is not called over HTTP")
    try:
        response = await adapter.get_models(target)
        body = await response.read_all(LARGEST_LIST)
    finally:
        await adapter.close()
    try:
        said = loads(body)
    except ValueError:
        said = None
    beginning = body[:300].decode(errors="replace")
    if target.credential:
        beginning = beginning.replace(target.credential, "***")
    status = adapter.status_of(response.status, body)
    return Listing(status, tuple(adapter.model_names(said)), beginning)
