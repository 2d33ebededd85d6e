"""What a tenant's address may lead to."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from torpor.model.addresses import is_public
from torpor.model.errors import InvalidInput, Undelivered
from torpor.notify.guard import Guard, Place, networks, resolve, server_of

GUARD = Guard()
REFUSED = [
    "127.0.0.1",
    "127.1",
    "127.255.255.254",
    "0",
    "0.0.0.0",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "10.0.0.1",
    "10.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "3232235777",
    "100.64.0.1",
    "100.100.100.200",
    "169.254.169.254",
    "0xa9fea9fe",
    "2852039166",
    "169.254.170.2",
    "168.63.129.16",
    "192.0.0.192",
    "198.18.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "localhost",
    "::1",
    "::",
    "0:0:0:0:0:0:0:1",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001::1",
    "2001:db8::1",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
    "100::1",
    "5f00::1",
]


@pytest.mark.parametrize("host", REFUSED)
async def test_what_is_not_the_public_internet_is_refused_however_it_is_spelled(host: str) -> None:
    with pytest.raises(Undelivered, match=r"not on the public internet|has no address"):
        await GUARD.places(host, 80)
    with pytest.raises(InvalidInput):
        await GUARD.check(host, 80)


@pytest.mark.parametrize("host", ["0x7f.1", "2130706433", "127.1", "017700000001"])
async def test_odd_spellings_are_addresses_to_the_resolver_and_judged_as_such(host: str) -> None:
    assert await resolve(host, 80) == [("127.0.0.1", 80)]


@pytest.mark.parametrize("host", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "198.20.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
async def test_the_public_internet_is_reached(host: str) -> None:
    assert is_public(ip_address(host))
    ((address, port),) = await GUARD.places(host, 443)
    assert (ip_address(address), port) == (ip_address(host), 443)


async def test_one_private_address_among_public_ones_is_refused() -> None:
    async def both(host: str, port: int) -> list[Place]:
        return [("8.8.8.8", port), ("10.0.0.1", port)]

    with pytest.raises(Undelivered):
        await Guard(resolve=both).places("example.org", 80)


async def test_a_name_without_an_address_is_refused() -> None:
    async def none(host: str, port: int) -> list[Place]:
        return []

    with pytest.raises(Undelivered, match="has no address"):
        await Guard(resolve=none).places("example.org", 80)
    with pytest.raises(Undelivered, match="has no address"):
        await GUARD.places("a" * 64 + ".invalid", 80)


@pytest.mark.parametrize("host", ["127.0.0.1", "10.20.0.5", "fd12::5", "::ffff:10.20.0.5"])
async def test_an_operator_opens_named_networks(host: str) -> None:
    opened = Guard(networks("127.0.0.0/8, 10.20.0.0/16,fd12::/48"))
    assert await opened.places(host, 80)


@pytest.mark.parametrize("host", ["169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "0.0.0.0", "fd00:ec2::254", "fe80::1", "10.21.0.1"])
async def test_metadata_and_other_networks_stay_closed(host: str) -> None:
    everything = "0.0.0.0/0,::/0" if host != "10.21.0.1" else "10.20.0.0/16"
    with pytest.raises(Undelivered):
        await Guard(networks(everything)).places(host, 80)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "//example.org/x",
        "ftp://example.org/",
        "file:///etc/passwd",
        "gopher://example.org/",
        "unix:///run/x.sock",
        "https://",
        "https:///x",
        "https://user:pass@example.org/",
        "https://user@example.org/",
        "https://example.org@127.0.0.1/",
        "https://example.org/#fragment",
        "https://exa mple.org/",
        "https://example.org/a b",
        "https://example.org\\@127.0.0.1/",
        "https://example.org/\r\nX: y",
        "https://example.org:0x50/",
        "https://example.org:99999/",
        "https://[::1/",
        "https://①②⑦.⓪.⓪.①/",
        "https://ｅxample.org/",
        "https://example.org/" + "x" * 2048,
    ],
)
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="This is not an address"):
        server_of(url)


def test_an_address_is_taken_apart() -> None:
    assert server_of("https://Example.org/x?y=z") == ("example.org", 443)
    assert server_of("http://example.org") == ("example.org", 80)
    assert server_of("http://[::1]:8080/x") == ("::1", 8080)
    with pytest.raises(InvalidInput):
        server_of("http://example.org", ("https",))
