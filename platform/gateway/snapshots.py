"""The catalogue as this process knows it, and the one thread in which the async side reads the database.

Nothing here runs per request: the catalogue is read on first use, and again when admission says "stale".
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

from django.db import Error, InterfaceError, OperationalError, connection

from gateway.catalogue.models import CatalogueVersion
from gateway.catalogue.snapshot import Catalogue, load_catalogue
from gateway.errors import Unavailable
from gateway.ledger.habits import last_outputs
from gateway.limits.expectations import expectations
from gateway.limits.facts import Rule, load_model_rules, load_rules
from tenants.facts import Caller

T = TypeVar("T")

_reader = ThreadPoolExecutor(1, thread_name_prefix="counterfoil-reader")
_catalogue: Catalogue | None = None
_loading: asyncio.Task[Catalogue] | None = None
_model_rules: tuple[Rule, ...] = ()
_rules: OrderedDict[int, tuple[tuple[int, int], tuple[Rule, ...]]] = OrderedDict()  # by key, the oldest read first
RULES_KNOWN = 50_000
# Called after the catalogue was read anew: others keep facts that its version covers (imported key digests).
listeners: list[Callable[[], Awaitable[None]]] = []


async def read(function: Callable[..., T], *args: object, thread: Executor = _reader) -> T:
    """Run a function that uses the ORM in the reader thread, or another. A database that is away is a 503."""
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, _with_connection, function, args)
    except (OperationalError, InterfaceError) as exc:
        raise Unavailable("The service is temporarily unavailable.", retry_after=2) from exc


def _with_connection(function: Callable[..., T], args: tuple[object, ...]) -> T:
    """Retried once on a new connection, since the database may have been restarted since the last read."""
    try:
        return function(*args)
    except (OperationalError, InterfaceError):
        connection.close()
    try:
        return function(*args)
    except Error:
        connection.close()
        raise


async def catalogue() -> Catalogue:
    return _catalogue if _catalogue is not None else await reload_catalogue()


async def reload_catalogue() -> Catalogue:
    """Read it again if its version has moved; callers at the same time share one read."""
    global _loading
    loop = asyncio.get_running_loop()
    if _loading is None or _loading.done() or _loading.get_loop() is not loop:
        _loading = loop.create_task(_load())
    # A caller that leaves must not cancel the read that others wait for.
    return await asyncio.shield(_loading)


async def _load() -> Catalogue:
    global _catalogue
    known = _catalogue
    fresh = await read(_newer_than, known.version if known is not None else None)
    if fresh is not None:
        _catalogue = fresh
        for listener in listeners:
            await listener()
    assert _catalogue is not None
    return _catalogue


def _newer_than(version: int | None) -> Catalogue | None:
    if version is not None and CatalogueVersion.objects.filter(version=version).exists():
        return None
    return load_catalogue()


async def rules_of(caller: Caller) -> tuple[Rule, ...]:
    """The limits that watch a caller, as of the versions of its key and tenant, and those on models."""
    known = _rules.get(caller.key_id)
    versions = caller.key_version, caller.tenant_version
    if known is None or known[0] != versions:
        first = known is None
        known = versions, await read(load_rules, caller.tenant_id, caller.key_id)
        if first and any(rule.guesses for rule in (*known[1], *_model_rules)):
            expectations.remember(caller.key_id, await read(last_outputs, caller.key_id))
        _rules[caller.key_id] = known
        if len(_rules) > RULES_KNOWN:
            _rules.popitem(last=False)
    return known[1] + _model_rules if _model_rules else known[1]


async def _reload_model_rules() -> None:
    global _model_rules
    _model_rules = await read(load_model_rules)


listeners.append(_reload_model_rules)


def forget() -> None:
    """For tests, which change the database under our feet."""
    global _catalogue, _loading, _model_rules
    _catalogue = _loading = None
    _model_rules = ()
    _rules.clear()
