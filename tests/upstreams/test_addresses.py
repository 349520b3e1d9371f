"""gateway.upstreams.addresses: what may be called, typed and resolved."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from gateway.upstreams import addresses
from gateway.upstreams.addresses import AddressRefused, check_base_url

PUBLIC = [
    "https://api.example.com/v1",
    "http://api.example.com:8443/v1/",
    "https://8.8.8.8/v1",
    "https://[2606:4700::1111]/v1",
    "https://xn--bcher-kva.example/v1",
    "HTTPS://API.EXAMPLE.COM/v1",
]
ALWAYS_REFUSED = [
    "",
    "api.example.com/v1",
    "ftp://api.example.com/v1",
    "file:///etc/passwd",
    "unix:///run/x.sock",
    "https://",
    "https://.",
    "https:///v1",
    "https://user:secret@api.example.com/v1",
    "https://@api.example.com/v1",
    "https://api.example.com/v1?x=1",
    "https://api.example.com/v1?",
    "https://api.example.com/v1#top",
    "https://api.example.com:0/v1",
    "https://api.example.com:99999/v1",
    "https://api.example.com:port/v1",
    "https://[::1/v1",
    "https://api.example.com\\@127.0.0.1/v1",
    "https://api.example.com /v1",
    "https://api.example.com/v1\n",
    "https://127%2e0.0.1/v1",
    "https://１２７.0.0.1/v1",
    "https://bücher.example/v1",
    "http://169.254.169.254/latest",
    "http://169.254.1.1/v1",
    "http://[fe80::1]/v1",
    "http://[fe80::1%25eth0]/v1",
    "http://[fd00:ec2::254]/v1",
    "http://[::ffff:169.254.169.254]/v1",
    "http://[::ffff:a9fe:a9fe]/v1",
    "http://[64:ff9b::a9fe:a9fe]/v1",
    "http://[2002:a9fe:a9fe::]/v1",
    "http://2852039166/latest",
    "http://0xa9fea9fe/latest",
    "http://0251.0376.0251.0376/latest",
    "http://169.254.43518/latest",
    "http://100.100.100.200/latest",
    "http://168.63.129.16/",
    "http://metadata.google.internal/v1",
    "http://METADATA.google.internal./v1",
    "http://metadata/v1",
    "http://0.0.0.0/v1",
    "http://0/v1",
    "http://[::]/v1",
    "http://[::ffff:0.0.0.0]/v1",
    "http://224.0.0.1/v1",
    "http://[ff02::1]/v1",
    "http://240.0.0.1/v1",
    "http://255.255.255.255/v1",
    "http://[fec0::1]/v1",
]
LOOPBACK = [
    "http://127.0.0.1:9100/v1",
    "http://127.8.9.1/v1",
    "http://[::1]:9100/v1",
    "http://[::ffff:127.0.0.1]/v1",
    "http://localhost:9100/v1",
    "http://LOCALHOST./v1",
    "http://model.localhost/v1",
    "http://2130706433/v1",
    "http://0177.0.0.1/v1",
    "http://0x7f.1/v1",
    "http://127.1/v1",
    "http://127.0.0.1./v1",
]
PRIVATE = [
    "http://10.0.0.5/v1",
    "http://172.16.3.4/v1",
    "http://192.168.1.1/v1",
    "http://100.64.0.7/v1",
    "http://[fd12::5]/v1",
    "http://[::ffff:10.0.0.5]/v1",
    "http://[64:ff9b::a00:5]/v1",
    "http://012.0.0.5/v1",
    "http://vllm.cluster.internal/v1",
]


@pytest.fixture(autouse=True)
def rules() -> Iterator[None]:
    before = addresses.rules()
    yield
    addresses.configure(allow_private=before.allow_private, allow_loopback=before.allow_loopback)


def accepted(url: str, *, private: bool = False, loopback: bool = False) -> bool:
    try:
        check_base_url(url, allow_private=private, allow_loopback=loopback)
    except AddressRefused as exc:
        assert len(str(exc)) > 20, "the text says what to do"
        return False
    return True


@pytest.mark.parametrize("url", PUBLIC)
def test_it_accepts_public_addresses(url: str) -> None:
    assert accepted(url)


@pytest.mark.parametrize("url", ALWAYS_REFUSED)
def test_it_refuses_whatever_is_allowed(url: str) -> None:
    assert not accepted(url, private=True, loopback=True)


@pytest.mark.parametrize("url", LOOPBACK)
def test_it_takes_loopback_only_if_allowed(url: str) -> None:
    assert accepted(url, loopback=True)
    assert not accepted(url, private=True)


@pytest.mark.parametrize("url", PRIVATE)
def test_it_takes_private_addresses_only_if_allowed(url: str) -> None:
    assert accepted(url, private=True)
    assert not accepted(url, loopback=True)


def test_it_is_a_value_error_for_forms() -> None:
    assert issubclass(AddressRefused, ValueError)


@pytest.mark.parametrize("address", ["169.254.169.254", "10.1.2.3", "127.0.0.1", "0.0.0.0", "fe80::1%2"])
def test_it_judges_the_resolved_address_when_connecting(address: str) -> None:
    addresses.configure(allow_private=False, allow_loopback=False)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pytest.raises(AddressRefused):
        addresses.open_socket((family, socket.SOCK_STREAM, 6, "", (address, 80)))


def test_it_opens_sockets_for_allowed_addresses() -> None:
    addresses.configure(allow_private=False, allow_loopback=True)
    addresses.open_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))).close()
