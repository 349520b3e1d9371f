"""The one thread in which kept answers are written and read.

Not the reader of `gateway.snapshots`, for which requests of all tenants wait: an answer may have megabytes. It has a
connection of its own, opened by the first request with the header. It serves tenants by turns, so that the crowd of
one waits for itself and not the others for it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from gateway import snapshots

T = TypeVar("T")
Work = tuple[Future[Any], Callable[[], Any]]

threads = ThreadPoolExecutor(1, thread_name_prefix="counterfoil-replies")
_lock = threading.Lock()
_waiting: OrderedDict[int, deque[Work]] = OrderedDict()  # by tenant; whose turn it is comes first


async def run(tenant_id: int, function: Callable[..., T], *args: object) -> T:
    """Raises Unavailable if the database is away."""
    return await snapshots.read(function, *args, thread=_Lane(tenant_id))


class _Lane(Executor):
    """The thread, as one tenant finds it."""

    def __init__(self, tenant_id: int) -> None:
        self._tenant_id = tenant_id

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        with _lock:
            _waiting.setdefault(self._tenant_id, deque()).append((future, partial(fn, *args, **kwargs)))
        threads.submit(_serve)  # as often as there is something to do, whoever's it will be
        return future


def _serve() -> None:
    """One piece of work of whose turn it is; its tenant's next turn comes after everybody else's."""
    with _lock:
        tenant_id, theirs = _waiting.popitem(last=False)
        future, work = theirs.popleft()
        if theirs:
            _waiting[tenant_id] = theirs
    try:
        if future.set_running_or_notify_cancel():
            future.set_result(work())
    except BaseException as exc:
        future.set_exception(exc)
    finally:
        del future, work  # or a failure would be in a cycle with this frame
