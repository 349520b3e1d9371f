"""Our claim on an Idempotency-Key, seen from asyncio: what becomes of it when its request has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gateway.errors import Unavailable
from gateway.replies import claims, running, thread
from gateway.replies.claims import Asked

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
OURS = "x-counterfoil-"  # headers that are true of a repeated answer too; rate limits are of the moment


class Claim:
    """None of these raises: an answer that the client could have must not fail because it cannot be kept.

    What the database cannot take now is tried again until it can, and nobody waits for that: meanwhile the key is
    in use, so a repeat is not run a second time.
    """

    def __init__(self, claim_id: int, asked: Asked) -> None:
        self._id = claim_id
        self._asked = asked

    async def keep(self, answer: bytes, headers: dict[str, str]) -> None:
        """Durable when this returns."""
        ours = {name: value for name, value in headers.items() if name.lower().startswith(OURS)}
        await self._surely(claims.keep, answer, ours)

    async def give_up_content(self) -> None:
        await self._surely(claims.give_up_content)

    async def release(self) -> None:
        await self._surely(claims.release)

    async def _surely(self, verb: Callable[..., object], *facts: object) -> None:
        if not await self._did(verb, facts):
            running.start(self._later(verb, facts))

    async def _later(self, verb: Callable[..., object], facts: tuple[object, ...]) -> None:
        done = False
        while not done:
            await asyncio.sleep(RETRY_SECONDS)
            done = await self._did(verb, facts)

    async def _did(self, verb: Callable[..., object], facts: tuple[object, ...]) -> bool:
        """False: the database is away."""
        try:
            await thread.run(self._asked.tenant_id, verb, self._id, self._asked, *facts)
        except Unavailable:
            log.warning("The database is away: the answer to request %s waits", self._asked.request_id)
            return False
        except Exception:
            log.exception("The answer to request %s cannot be kept", self._asked.request_id)
            if verb is claims.keep:  # it was charged: not to be run again
                return await self._did(claims.lose, ())
        return True
