"""Active probes: whether a provider answers and takes the credential, asked before a client has to find out.

Off unless a deployment has `probe_every_s`. They ask for the list of models, which providers do not charge for, and
are in nobody's books. Deployments of one provider that are due together share one question.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import defaultdict
from typing import NamedTuple
from uuid import uuid4

from gateway.catalogue.models import Deployment, Provider
from gateway.errors import GatewayError, UpstreamTimeout
from gateway.failover import circuits
from gateway.failover.circuits import Author
from gateway.upstreams.base import Target
from gateway.upstreams.listing import list_models

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
AT_ONCE = 16
NOTHING_TO_ASK = [str(Provider.Protocol.ECHO)]


class Outcome(NamedTuple):
    good: bool | None  # None: it was reached, which says nothing of whether it can answer
    text: str


def probe_due() -> int:
    """Ask those that are due; returns how many deployments were. May run twice at once."""
    ids = circuits.due(never=NOTHING_TO_ASK)
    if not ids:
        return 0
    deployments = defaultdict(list)
    for deployment in Deployment.objects.filter(pk__in=ids).select_related("provider"):
        deployments[deployment.provider].append(deployment.pk)
    providers = list(deployments)
    outcomes = asyncio.run(_ask_all([_target(provider) for provider in providers]))
    author = Author(uuid4(), f"{socket.gethostname()[:80]} {os.getpid()}")
    for provider, outcome in zip(providers, outcomes, strict=True):
        for deployment_id in deployments[provider]:
            circuits.probed(author, deployment_id, good=outcome.good, outcome=outcome.text)
    return len(ids)


async def _ask_all(targets: list[Target]) -> list[Outcome]:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(target: Target) -> Outcome:
        async with slots:
            return await ask(target)

    return await asyncio.gather(*map(one, targets))


async def ask(target: Target) -> Outcome:
    """One question, within TIMEOUT_S."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            listing = await list_models(target)
    except (TimeoutError, UpstreamTimeout):
        return Outcome(False, "it did not answer in time")
    except GatewayError:
        return Outcome(False, "it could not be reached")
    except Exception:  # a defect of ours says nothing of the deployment, and nothing of the others
        log.exception("A provider could not be asked for its models")
        return Outcome(None, "it could not be asked")
    status = listing.status
    if status in (401, 403):
        return Outcome(False, f"it refused the credential (status {status})")
    if status >= 500:
        return Outcome(False, f"status {status}")
    if status in (404, 405):
        return Outcome(True, f"it answers, but does not list its models (status {status})")
    if listing.models:
        return Outcome(True, f"it lists its models ({len(listing.models)})")
    return Outcome(None, f"it was reached, but its answer lists no models (status {status})")


def _target(provider: Provider) -> Target:
    return Target(
        deployment_id=0,
        provider_id=provider.pk,
        protocol=provider.protocol,
        base_url=provider.base_url,
        credential=provider.credential,
        upstream_model="",
        connect_timeout_s=min(provider.connect_timeout_s, TIMEOUT_S),
        read_timeout_s=TIMEOUT_S,
        api_version=provider.api_version,
    )
