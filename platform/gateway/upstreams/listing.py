"""What a provider says it serves: the cheapest request that shows whether address and credential are right."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.upstreams.base import Target
from gateway.upstreams.client import Client
from gateway.upstreams.jsontext import loads

LARGEST_LIST = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Listing:
    status: int  # HTTP
    models: tuple[str, ...]  # empty too if the answer is no list
    body: str  # how it begins, for an administrator; the credential masked


async def list_models(target: Target) -> Listing:
    """GET {base_url}/models. Raises UpstreamError or UpstreamTimeout if no answer came."""
    client = Client()
    try:
        response = await client.get(target, "/models")
        body = await response.read_all(LARGEST_LIST)
    finally:
        await client.close()
    try:
        said = loads(body)
    except ValueError:
        said = None
    found = said.get("data") if isinstance(said, dict) else None
    models = [item.get("id") for item in found if isinstance(item, dict)] if isinstance(found, list) else []
    beginning = body[:300].decode(errors="replace")
    if target.credential:
        beginning = beginning.replace(target.credential, "***")
    return Listing(response.status, tuple(name for name in models if isinstance(name, str)), beginning)
