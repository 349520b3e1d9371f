"""Floods without a valid key are limited by address: in memory, bounded, per process, without any query.

Only who has just been refused for its key is counted and refused here, so a good key is served whatever else comes
from its address. A bucket per IPv4 address or IPv6 /64 (a host's own network): UNAUTHENTICATED_PER_MINUTE at once,
and as many a minute again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from math import ceil

from django.conf import settings
from django.http import HttpRequest

from gateway.errors import RateLimited
from gateway.limits.durations import go_duration, retry_headers

ADDRESSES = 50_000  # in memory, some 200 bytes each; the one not heard of for longest is forgotten
MINUTE = 60.0
IPV6_HOST_BITS = 64


class Strangers:
    def __init__(self) -> None:
        self._full_at: OrderedDict[str, float] = OrderedDict()  # when an address's bucket is whole again (monotonic)

    def refusal(self, address: str, now: float | None = None) -> RateLimited | None:
        """Counts one refused request of this address; the answer to give instead, if there were too many."""
        limit: int = settings.UNAUTHENTICATED_PER_MINUTE
        if not limit:
            return None
        now = time.monotonic() if now is None else now
        interval = MINUTE / limit
        full_at = max(self._full_at.get(address, now), now)
        wait = full_at - now - (MINUTE - interval)
        if wait > 1e-6:
            return _too_many(max(1, ceil(wait * 1000)))
        self._full_at[address] = full_at + interval
        self._full_at.move_to_end(address)
        if len(self._full_at) > ADDRESSES:
            self._full_at.popitem(last=False)
        return None

    def forget(self) -> None:
        """For tests."""
        self._full_at.clear()


def _too_many(wait_ms: int) -> RateLimited:
    return RateLimited(
        "Too many requests without a valid API key have come from your address. "
        f"Please try again in {go_duration(wait_ms)}.",
        headers=retry_headers(wait_ms),
    )


def address_of(request: HttpRequest) -> str:
    """Whose bucket: the peer's or, behind a proxy of ours, the one that the proxy has seen (the last hop)."""
    client = getattr(request, "scope", {}).get("client")
    peer = client[0] if client else ""
    if settings.BEHIND_PROXY:
        last = request.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
        return _network(last) or _network(peer)
    return _network(peer)


def _network(text: str) -> str:
    """ "" for what is no address, such as a Unix socket's peer."""
    if text.startswith("["):  # some proxies add the port: [2001:db8::1]:443, 192.0.2.1:443
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> IPV6_HOST_BITS << IPV6_HOST_BITS))
    return str(address)


strangers = Strangers()
