"""Which addresses Counterfoil may call: the guard against being used to reach what only the server can reach.

Whoever may edit a provider must not be able to read the cloud's metadata service or an internal page through
us. `check_base_url` judges what was typed; `open_socket` judges the address that a name really led to, at the
moment of connecting, since a name may resolve to something else by then (DNS rebinding).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address

METADATA_NAMES = {
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
}
# Metadata services outside the link-local ranges: AWS, GCP, Alibaba, Oracle, Azure's wire server.
METADATA_ADDRESSES = {
    ip_address(text)
    for text in (
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
    )
}
THIS_NETWORK = ip_network("0.0.0.0/8")  # Linux takes 0.0.0.0 for loopback
SITE_LOCAL = ip_network("fec0::/10")
NAT64 = ip_network("64:ff9b::/96")
LOOPBACK_REFUSED = "{} is this machine itself. Set UPSTREAM_ALLOW_LOOPBACK=true if the upstream runs here."
PRIVATE_REFUSED = "{} is private. Set UPSTREAM_ALLOW_PRIVATE=true if upstreams run in your own network."


class AddressRefused(ValueError):
    """An address that must not be called. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Rules:
    allow_private: bool = False
    allow_loopback: bool = False


_rules = Rules()


def configure(*, allow_private: bool, allow_loopback: bool) -> None:
    """Set this process's rules for connections; GatewayConfig.ready calls it once."""
    global _rules
    _rules = Rules(allow_private, allow_loopback)


def rules() -> Rules:
    return _rules


def check_base_url(url: str, *, allow_private: bool, allow_loopback: bool) -> None:
    """Raise AddressRefused unless `url` may be an upstream's base URL. Resolves no names."""
    if not url.isascii() or any(char <= " " or char in '\\<>"`{}|^' for char in url):
        raise AddressRefused(
            "The base URL holds a character that URLs may not hold (write other alphabets as xn--…)."
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise AddressRefused(f"The base URL cannot be read: {exc}. Expected https://host/v1.") from exc
    if parts.scheme not in ("http", "https"):
        raise AddressRefused("The base URL must start with https:// (or http://), for example https://host/v1.")
    if not host or port == 0:
        raise AddressRefused("The base URL needs a host, for example https://host/v1.")
    if "@" in parts.netloc:
        raise AddressRefused("Leave user name and password out of the base URL; the key goes into the credential.")
    if "?" in url or "#" in url:
        raise AddressRefused("Leave ?… and #… out of the base URL; it ends with a path, as in https://host/v1.")
    if "%" in parts.netloc:
        raise AddressRefused("The host of the base URL may hold no % signs.")
    _check_host(host, Rules(allow_private, allow_loopback))


def check_address(address: Address, rules: Rules) -> None:
    """Raise AddressRefused unless this IP address may be called."""
    if isinstance(address, IPv6Address):
        for inner in _embedded(address):
            check_address(inner, rules)
        if address.ipv4_mapped:
            return  # it *is* the address inside; Python would call the outer one reserved
    if address in METADATA_ADDRESSES or address.is_link_local:
        raise AddressRefused(f"{address} is a link-local or metadata address, which is never called.")
    if address.is_unspecified or address.is_multicast or address in THIS_NETWORK or address in SITE_LOCAL:
        raise AddressRefused(f"{address} is not the address of one machine. Give the upstream's own address.")
    if address.is_loopback:
        if not rules.allow_loopback:
            raise AddressRefused(LOOPBACK_REFUSED.format(address))
    elif address.is_reserved and address not in NAT64:
        raise AddressRefused(f"{address} is in a reserved range. Give the upstream's own address.")
    elif not address.is_global and not rules.allow_private:
        raise AddressRefused(PRIVATE_REFUSED.format(address))


def open_socket(info: tuple[Any, ...]) -> socket.socket:
    """aiohttp's socket factory: called with the resolved address, just before it connects there."""
    family, kind, protocol, _, sockaddr = info
    check_address(ip_address(str(sockaddr[0])), _rules)
    return socket.socket(family, kind, protocol)


def _check_host(host: str, rules: Rules) -> None:
    literal = _literal(host)
    if literal is not None:
        check_address(literal, rules)
        return
    name = host.rstrip(".").lower()
    if not name:
        raise AddressRefused("The base URL needs a host, for example https://host/v1.")
    if name in METADATA_NAMES:
        raise AddressRefused(f"{name} is a metadata service, which is never called.")
    if (name == "localhost" or name.endswith(".localhost")) and not rules.allow_loopback:
        raise AddressRefused(LOOPBACK_REFUSED.format(name))
    if name.endswith(".internal") and not rules.allow_private:
        raise AddressRefused(PRIVATE_REFUSED.format(name))


def _literal(host: str) -> Address | None:
    """The IP address that the C library would read out of a host, in any of the forms that it takes."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:  # 2130706433, 0177.0.0.1, 0x7f.1, 127.1 (and a trailing dot, which resolvers drop)
        return IPv4Address(socket.inet_aton(host.rstrip(".")))
    except OSError:
        return None


def _embedded(address: IPv6Address) -> list[IPv4Address]:
    """IPv4 addresses that packets to this IPv6 address may end at."""
    inner = [address.ipv4_mapped, address.sixtofour, (address.teredo or (None, None))[1]]
    if address in NAT64:
        inner.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [found for found in inner if found is not None]
